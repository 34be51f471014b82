"""Runs several phases for a machine that is lent by the minute: tracks side by side, each phase in its own
process with its own time; a phase that fails stops nothing but its own track.

    python -m demos.training.run_all --data sprites.npz --runs runs --out out \\
        --track vae=2,flux=7 --track wan_vae=2.5,wan=5

A track starts each phase when the one before is over; phases of other tracks that need its files compile
and wait. A trained flux, sd or wan is exported and gets sample sheets; then ``--out`` gets the pipeline
(NAME.tar.00, .01, ... of ``--part-mb`` each), the logs, losses and sheets so far (report.tar), and last an
empty NAME.done.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

PHASES = ("vae", "flux", "sd", "wan_vae", "wan")
# Sheets of each pipeline: name, options of demos.training.sheets
SHEETS = {
    "flux": [
        ("emoji_flux", ["--pixels", "256"]),
        ("emoji_flux_512", ["--pixels", "512", "--count", "8", "--edge", "256"]),
    ],
    "sd": [("emoji_sd", ["--pixels", "256"])],
    "wan": [("emoji_wan", ["--pixels", "256"])],
}
TINY_SHEETS = ["--pixels", "64", "--frames", "5", "--steps", "2", "--count", "2", "--edge", "64"]


class Runner:
    """Starts the phases' processes and stops them at the deadline."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.began = args, time.monotonic()
        self.exports, self.logs = args.runs / "exports", args.runs / "logs"
        self.sheets = args.runs / "sheets"
        for folder in (self.exports, self.logs, self.sheets, args.out):
            folder.mkdir(parents=True, exist_ok=True)

    def left(self) -> float:
        """Seconds until everything has to be over."""
        return self.args.deadline - (time.monotonic() - self.began)

    def call(self, name: str, module: str, options: list[str], reserve: float) -> bool:
        """One process, its output in the logs and, line by line, on the screen."""
        command = [sys.executable, "-u", "-m", f"demos.training.{module}", *options]
        quiet = {"DIFFUSERS_VERBOSITY": "error", "TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1"}
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | quiet
        )
        timer = threading.Timer(max(0.1, self.left() - reserve), process.kill)
        timer.start()
        with open(self.logs / f"{name}.log", "a", encoding="utf-8") as log:
            for line in process.stdout:
                log.write(line)
                print(f"[{time.monotonic() - self.began:4.0f} {name}] {line.rstrip()}", flush=True)
        timer.cancel()
        code = process.wait()
        if code:
            print(f"[{name}] FAILED or stopped, code {code}", flush=True)
        return code == 0

    def phase(self, word: str) -> None:
        """``name=minutes`` or ``name=minutes/pause``: waits for what it needs, trains, exports, draws."""
        name, _, length = word.partition("=")
        runs, options = self.args.runs, ["--data", str(self.args.data), "--out", str(self.args.runs / name)]
        if length:
            minutes, _, pause = length.partition("/")
            options += ["--minutes", minutes, *(["--pause-after", pause] if pause else [])]
        if name in ("flux", "sd"):
            options += ["--vae", str(runs / "vae")]
        if name == "sd":
            options += ["--flux", str(runs / "flux")]
        if name == "wan":
            options += ["--vae", str(runs / "wan_vae")]
        if name in ("flux", "sd", "wan"):
            options += ["--wait", str(max(0.0, self.left() / 60 - 1))]
        options += self.args.extra.split()
        if not self.call(name, name, options, reserve=45) and self.left() > 90:
            # A compiler failure must not cost the phase: go on from the checkpoint without it.
            self.call(name, name, [*options, "--no-compile"], reserve=45)
        if name in SHEETS and (runs / name / "checkpoint.safetensors").exists():
            self.export(name)

    def export(self, name: str) -> None:
        runs, model = self.args.runs, self.exports / f"emoji-{name}"
        tiny = "tiny" in self.args.extra.split()
        vae = runs / ("wan_vae" if name == "wan" else "vae")
        options = [
            "--run",
            str(runs / name),
            "--vae",
            str(vae),
            "--flux",
            str(runs / "flux"),
            "--out",
            str(model),
        ]
        if not self.call(
            f"export_{name}", "export", [name, *options, *(["--size", "tiny"] if tiny else [])], 12
        ):
            return
        for title, extra in SHEETS[name]:
            options = ["--model", str(model), "--meta", str(self.args.data.with_suffix(".json"))]
            options += ["--out", str(self.sheets / f"{title}.png"), *(TINY_SHEETS if tiny else extra)]
            self.call(f"sheet_{title}", "sheets", options, reserve=8)
        self.pack(name)

    def track(self, words: str) -> None:
        for word in words.split(","):
            try:
                self.phase(word)
            except Exception as error:  # the other phases shall still run
                print(f"[{word}] {error!r}", flush=True)

    def pack(self, name: str) -> None:
        """Tar files in ``--out``, the pipeline's cut into parts."""
        self.report()
        whole = self.args.runs / f"{name}.tar"
        with tarfile.open(whole, "w") as tar:
            tar.add(self.exports / f"emoji-{name}", f"emoji-{name}")
        data, part = whole.read_bytes(), int(self.args.part_mb * 2**20)
        for i in range(0, len(data), part):
            (self.args.out / f"{name}.tar.{i // part:02d}").write_bytes(data[i : i + part])
        (self.args.out / f"{name}.done").touch()

    def report(self) -> None:
        """Logs, losses and sheets so far."""
        for losses in self.args.runs.glob("*/losses.json"):
            (self.logs / f"{losses.parent.name}_losses.json").write_bytes(losses.read_bytes())
        with tarfile.open(self.args.out / "report.tar", "w") as tar:
            tar.add(self.logs, "logs")
            tar.add(self.sheets, "sheets")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="sprites.npz")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the phases' run folders")
    parser.add_argument("--out", type=Path, required=True, help="folder for what shall be kept")
    parser.add_argument("--track", action="append", required=True, help="phase=minutes[/pause],... in order")
    parser.add_argument(
        "--deadline", type=float, default=570, help="seconds after which all is stopped and packed"
    )
    parser.add_argument("--part-mb", type=float, default=15.5, help="largest file in --out, MiB")
    parser.add_argument("--extra", default="", help="options handed to every phase")
    args = parser.parse_args(argv)
    unknown = {w.split("=")[0] for t in args.track for w in t.split(",")} - set(PHASES)
    if unknown:
        raise SystemExit(f"--track: unknown phase {', '.join(sorted(unknown))}; allowed: {', '.join(PHASES)}")
    runner = Runner(args)
    threads = [threading.Thread(target=runner.track, args=(t,)) for t in args.track]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    runner.report()
    print(f"all done in {time.monotonic() - runner.began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
