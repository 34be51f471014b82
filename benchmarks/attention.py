"""Time and peak memory of one attention call: a pattern against PyTorch's dense attention.

    python -m benchmarks.attention --grid 64x64 --text 32 --pattern neighborhood:window=17x17

Each way runs in a process of its own, so that its peak memory is its own; time is the median of repeated
calls. On CUDA the dense baseline is cuDNN's. FLOPs count the pairs that the pattern allows; "ideal" is dense
time times density.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import vidattn
from benchmarks.record import save, table

WAYS = ("dense", "dense-math", "torch")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--grid", default="64x64", help="tokens, TxHxW or HxW (default 64x64: 512 px of emoji-flux)"
    )
    parser.add_argument("--text", type=int, default=32, help="text tokens in front (default 32)")
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--pattern", nargs="+", default=["neighborhood:window=17x17"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument(
        "--repeats", type=int, default=3, help="processes per way; the median is kept (default 3)"
    )
    parser.add_argument("--save", metavar="NAME", help="write benchmarks/results/NAME.json")
    parser.add_argument("--folder", type=Path, help="write it there instead")
    parser.add_argument("--child", metavar="WAY", help=argparse.SUPPRESS)
    return parser.parse_args()


def call(way: str, pattern: vidattn.patterns.Pattern, scale: float) -> Callable[..., Tensor]:
    """The function that is measured, on (B, S, H, D) tensors."""
    if way == "torch":
        return lambda q, k, v, layout: vidattn.attention(
            q, k, v, pattern, layout, scale=scale, backend="torch"
        )

    def dense(q: Tensor, k: Tensor, v: Tensor, layout: vidattn.TokenLayout) -> Tensor:
        kinds = [SDPBackend.MATH] if way == "dense-math" else _fastest(q.device)
        with sdpa_kernel(kinds):
            return F.scaled_dot_product_attention(
                *(t.transpose(1, 2) for t in (q, k, v)), scale=scale
            ).transpose(1, 2)

    return dense


def _fastest(device: torch.device) -> list[SDPBackend]:
    return [SDPBackend.CUDNN_ATTENTION] if device.type == "cuda" else [SDPBackend.FLASH_ATTENTION]


@torch.no_grad()
def measure(arguments: argparse.Namespace, way: str, pattern_text: str) -> dict[str, float]:
    """Milliseconds and MiB (above the inputs, the output included) of one way, in this process."""
    device, dtype = torch.device(arguments.device), getattr(torch, arguments.dtype)
    pattern = vidattn.patterns.from_text(pattern_text)
    layout = vidattn.TokenLayout(tuple(map(int, arguments.grid.split("x"))), arguments.text)
    torch.manual_seed(0)
    shape = (1, layout.tokens, arguments.heads, arguments.head_dim)
    q, k, v = (torch.randn(shape, device=device, dtype=dtype) for _ in range(3))
    function = call(way, pattern, arguments.head_dim**-0.5)
    function(q, k, v, layout)  # libraries load and plans are made
    if device.type == "cuda":
        from triton.testing import do_bench

        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function(q, k, v, layout)
        peak = (torch.cuda.max_memory_allocated() - before) / 2**20
        return {"ms": do_bench(lambda: function(q, k, v, layout), return_mode="median"), "MiB": peak}
    peak = _peak_resident(lambda: function(q, k, v, layout))
    times = []
    for _ in range(9):
        start = time.perf_counter()
        function(q, k, v, layout)
        times.append(1e3 * (time.perf_counter() - start))
    return {"ms": statistics.median(times), "MiB": peak}


def _peak_resident(function: Callable[[], Any]) -> float:
    """Growth of the process's resident memory at its highest while ``function`` runs, in MiB (Linux)."""
    status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")

    def read(name: str) -> int:
        found = re.search(rf"{name}:\s+(\d+)", status.read_text())
        assert found, f"/proc/self/status has no {name}"
        return int(found.group(1))

    before = read("VmRSS")
    clear.write_text("5")  # resets the high-water mark
    function()
    return (read("VmHWM") - before) / 1024


def run(arguments: argparse.Namespace, way: str, pattern: str) -> dict[str, float]:
    """Medians over fresh processes."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.attention",
        *sys.argv[1:],
        "--child",
        way,
        "--pattern",
        pattern,
    ]
    done = [
        json.loads(
            subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
        )
        for _ in range(arguments.repeats)
    ]
    return {key: statistics.median(d[key] for d in done) for key in done[0]}


def main() -> None:
    """Print a table, and save it when asked."""
    arguments = parse()
    if arguments.child:
        print(json.dumps(measure(arguments, arguments.child, arguments.pattern[0])))
        return
    layout = vidattn.TokenLayout(tuple(map(int, arguments.grid.split("x"))), arguments.text)
    rows: list[dict[str, Any]] = []
    base = None
    for way in arguments.ways:
        for text in arguments.pattern if way == "torch" else ["full"]:
            pattern = vidattn.patterns.from_text(text)
            density = pattern.density(layout)
            row: dict[str, Any] = {
                "way": way,
                "pattern": text,
                "density": density,
                **run(arguments, way, text),
            }
            flops = 4 * layout.tokens**2 * density * arguments.heads * arguments.head_dim
            row["useful TFLOP/s"] = flops / row["ms"] / 1e9
            base = base or row["ms"]
            row["times dense"] = base / row["ms"]
            row["of ideal"] = base * density / row["ms"]
            rows.append(row)
    columns = ["way", "pattern", "density", "ms", "MiB", "useful TFLOP/s", "times dense", "of ideal"]
    print(table(rows, columns))
    if arguments.save:
        options = {k: getattr(arguments, k) for k in ("grid", "text", "heads", "head_dim", "dtype")}
        folder = {"folder": arguments.folder} if arguments.folder else {}
        print(
            "saved",
            save(arguments.save, rows, torch.device(arguments.device), options=options, **folder).name,
        )


if __name__ == "__main__":
    main()
