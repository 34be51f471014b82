"""``vidattn bench``: time, memory and precision of single attention calls, next to dense attention."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidattn.cli.arguments import BadArgument, check_output, grid, positive, whole

if TYPE_CHECKING:
    from vidattn.bench import Case

_EXAMPLES = """\
examples:
  vidattn bench
  vidattn bench --list
  vidattn bench flux-2048 wan-1.3b --output results.json --plot cost.png
  vidattn bench --grid 64x64 --text 32 --heads 4 --head-dim 64 --pattern neighborhood:window=17
  vidattn bench cpu-64 --way sdpa-flash torch --forward-only --threads 1
  vidattn bench --plot cost.png --from results.json
  vidattn bench --quality -- --size 256 --prompts 16

Without cases those for the device are run: the models' sizes on a GPU, small ones on a CPU. Each result is
first compared with a float64 reference, and not reported where it differs. --quality and --tune need a
checkout; what stands behind -- goes to python -m benchmarks.quality or benchmarks.tune.
"""


def add_parser(commands: Any) -> None:
    """Add this command to the command line's subparsers."""
    parser = commands.add_parser(
        "bench",
        help="time, memory and precision of single attention calls",
        description="Measure single attention calls: each pattern by every backend, next to dense attention.",
        epilog=_EXAMPLES,
    )
    add = parser.add_argument
    add("cases", metavar="CASE", nargs="*", help="names of --list (default: those for the device)")
    add("--list", action="store_true", help="print the cases and stop")
    add("--grid", type=grid, help="a case of your own: tokens as HxW or TxHxW")
    add("--text", type=whole, default=0, metavar="N", help="its text tokens, before the grid (default 0)")
    add("--batch", type=positive, default=1, help="its items (default 1)")
    add("--heads", type=positive, default=24, help="its heads (default 24)")
    add("--head-dim", type=positive, default=128, help="its head size (default 128)")
    add("--pattern", nargs="+", metavar="PATTERN", help="text forms, or linear, instead of the cases' own")
    add("--way", nargs="+", metavar="WAY", help="who is measured (default: all that can run)")
    add("--device", default="auto", help="cpu, cuda, cuda:1; auto takes a GPU where there is one")
    add("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto")
    add("--threads", type=positive, help="CPU threads (default: PyTorch's)")
    add("--forward-only", action="store_true", help="leave gradients out")
    add("--output", type=Path, metavar="FILE", help="save the results as JSON")
    add("--plot", type=Path, metavar="FILE", help="draw cost against tokens (PNG or SVG; needs matplotlib)")
    add(
        "--from",
        type=Path,
        nargs="+",
        dest="saved",
        metavar="FILE",
        help="show saved results; measure nothing",
    )
    add("--quality", action="store_true", help="what patterns cost in picture quality (checkout only)")
    add("--tune", action="store_true", help="search tile sizes for this GPU (checkout only)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Measure, print, save and draw; or one of the other things that were asked for."""
    for name in ("quality", "tune"):
        if getattr(arguments, name):
            return _script(name, arguments.cases)
    if arguments.list:
        return _list()
    if arguments.plot:
        check_output(arguments.plot, (".png", ".svg"))
    if arguments.output:
        check_output(arguments.output, (".json",))
    if arguments.saved:
        return _show([_read(path) for path in arguments.saved], arguments.plot)
    return _measure(arguments)


def _script(name: str, options: list[str]) -> None:
    """Run ``python -m benchmarks.NAME`` of the checkout that this package is in."""
    import vidattn

    root = Path(vidattn.__file__).parents[1]
    if not (root / "benchmarks" / f"{name}.py").is_file():
        raise BadArgument(f"--{name}", f"needs a checkout of the repository, with benchmarks/{name}.py")
    done = subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *options], cwd=root, check=False)
    if done.returncode:
        raise RuntimeError(f"python -m benchmarks.{name} ended with status {done.returncode}")


def _list() -> None:
    from vidattn.bench import CASES

    for case in CASES.values():
        size = f"{case.batch}x{case.heads}x{case.head_dim}, {'x'.join(map(str, case.grid))}"
        text = f" + {case.layout.text_tokens}" if case.layout.text_tokens else ""
        print(f"{case.name:<16}{size}{text}: {case.about}")
        print(f"{'':<16}{', '.join(case.patterns)}")


def _read(path: Path) -> dict[str, Any]:
    import json

    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record["rows"], list):
            raise TypeError("no rows")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadArgument("--from", f"{str(path)!r} holds no results: {error}") from error
    return record


def _show(records: list[dict[str, Any]], plot: Path | None) -> None:
    from vidattn.bench import plot as plots
    from vidattn.bench.record import table
    from vidattn.bench.runner import COLUMNS

    rows = [row for record in records for row in record["rows"]]
    print(table(rows, [c for c in COLUMNS if any(c in row for row in rows)]))
    if plot:
        print(f"drawn {plots.draw(records, plot)}")


# ---------------------------------------------------------------------- measuring
def _measure(arguments: argparse.Namespace) -> None:
    import torch
    from tqdm import tqdm

    from vidattn.bench import record, runner
    from vidattn.cli.generation import choose_device, choose_dtype

    device = choose_device(arguments.device)
    if device.type not in ("cpu", "cuda"):
        raise BadArgument("--device", f"{device.type!r} is not measured: cpu or cuda")
    dtype = choose_dtype(arguments.dtype, device)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    _check_patterns(arguments.pattern)
    cases, ways = _cases(arguments, device.type), _ways(arguments.way, device.type)
    rows: list[dict[str, Any]] = []
    options = {"backward": not arguments.forward_only, "patterns": arguments.pattern}
    found = runner.run(cases, ways, device, dtype, **options)
    for part in tqdm(found, total=len(cases), desc="cases", file=sys.stderr):
        rows += part
    name = str(dtype).removeprefix("torch.")
    measured = {**record.machine(device), "dtype": name, "rows": rows}
    if arguments.output:
        print(f"saved {record.save(arguments.output, rows, device, dtype=name)}", file=sys.stderr)
    _show([measured], arguments.plot)


def _cases(arguments: argparse.Namespace, kind: str) -> list[Case]:
    from vidattn.bench import CASES, Case
    from vidattn.bench.cases import default_cases
    from vidattn.patterns.text import nearest

    for name in arguments.cases:
        if name not in CASES:
            raise BadArgument("CASE", f"unknown case {name!r}: {nearest(name, CASES)}")
    cases = [CASES[name] for name in arguments.cases]
    if arguments.grid:
        size = (1,) * (3 - len(arguments.grid)) + arguments.grid
        patterns = tuple(arguments.pattern or ("neighborhood:window=17",))
        cases.append(
            Case("own", arguments.batch, arguments.heads, arguments.head_dim, size, patterns, arguments.text)
        )
    return cases or list(default_cases(kind))


def _ways(wanted: list[str] | None, kind: str) -> list[str]:
    from vidattn.bench.ways import defaults, names
    from vidattn.patterns.text import nearest

    if wanted is None:
        ways, left_out = defaults(kind)
        for name, reason in left_out.items():
            print(f"without {name}: {reason}", file=sys.stderr)
        return ways
    known = names(kind)
    for name in wanted:
        if name not in known:
            raise BadArgument("--way", f"unknown way {name!r} on {kind}: {nearest(name, known)}")
    return wanted


def _check_patterns(texts: list[str] | None) -> None:
    from vidattn.bench.call import Call
    from vidattn.bench.cases import CPU

    for text in texts or ():
        try:
            _ = Call(CPU[0], text).pattern
        except ValueError as error:
            raise BadArgument("--pattern", str(error)) from error
