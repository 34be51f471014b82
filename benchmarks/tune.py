"""Times tilings of the attention kernels on this GPU and writes the best ones into ``tiles.json``.

    python -m benchmarks.tune                     # this GPU, all kernels, head sizes 64, 128 and 256
    python -m benchmarks.tune --sizes 128 --kernels forward --seconds 60

Users never tune: the table is shipped, and a device without an entry of its own takes the entries for "any".
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from vidattn import TokenLayout, attention
from vidattn.kernels import sources, tiling
from vidattn.kernels.tiling import Tiling
from vidattn.patterns import Neighborhood

TABLE = Path(tiling.__file__).with_name("tiles.json")
KERNELS = ("forward", "query", "key")
CHOICES = {"rows": (64, 128), "columns": (32, 64, 128), "warps": (4, 8), "stages": (1, 2, 3, 4)}
# a picture at 2048 px and a video at 480p: their mean decides
LAYOUTS = [
    (Neighborhood((33, 33)), TokenLayout((1, 128, 128), 512)),
    (Neighborhood((9, 15, 15)), TokenLayout((21, 30, 52))),
]


def candidates() -> Iterator[Tiling]:
    """Every combination of ``CHOICES``."""
    for values in itertools.product(*CHOICES.values()):
        yield Tiling(*values)


def best(
    options: Iterator[Tiling], measure: Callable[[Tiling], float], seconds: float
) -> tuple[Tiling, float] | None:
    """The fastest option and its time, of those reached within ``seconds``; those that fail are left out."""
    end, found = time.monotonic() + seconds, None
    for option in options:
        if time.monotonic() > end:
            break
        try:
            taken = measure(option)
        except Exception as error:  # too much shared memory, a shape that the compiler refuses
            print(f"  {option}: {type(error).__name__}")
            continue
        print(f"  {option}: {taken:.3f} ms")
        if found is None or taken < found[1]:
            found = option, taken
    return found


def merge(entries: list[dict], new: dict) -> list[dict]:
    """``entries`` with ``new`` in the place of the entry with the same key, or in front of all."""
    key = ("kernel", "device", "bits", "size")
    same = [all(entry[k] == new[k] for k in key) for entry in entries]
    if any(same):
        return [new if hit else entry for entry, hit in zip(entries, same, strict=True)]
    # among the entries of a kernel the smaller head sizes have to come first
    at = next(
        (
            i
            for i, e in enumerate(entries)
            if all(e[k] == new[k] for k in key[:3]) and e["size"] > new["size"]
        ),
        None,
    )
    own = [i for i, e in enumerate(entries) if all(e[k] == new[k] for k in key[:3])]
    place = at if at is not None else own[-1] + 1 if own else 0
    return [*entries[:place], new, *entries[place:]]


def measure_on_gpu(kernel: str, size: int, dtype: torch.dtype) -> Callable[[Tiling], float]:
    """A function from a tiling of one kernel to the milliseconds of a call (and its backward)."""
    from triton.testing import do_bench

    shipped = tiling.choose

    def measure(option: Tiling) -> float:
        tiling.choose = lambda name, *rest: option if name == kernel else shipped(name, *rest)
        try:
            total = 0.0
            for pattern, layout in LAYOUTS:
                shape = 3, 1, layout.tokens, 12, size
                leaves = torch.randn(*shape, device="cuda", dtype=dtype).unbind()
                if kernel == "forward":
                    with torch.no_grad():
                        total += do_bench(
                            lambda a=leaves, p=pattern, g=layout: attention(*a, p, g, backend="triton")
                        )
                    continue
                leaves = [t.clone().requires_grad_() for t in leaves]
                out = attention(*leaves, pattern, layout, backend="triton")
                slope = torch.randn_like(out)
                total += do_bench(
                    lambda o=out, a=leaves, s=slope: torch.autograd.grad(o, a, s, retain_graph=True)
                )
            return total
        finally:
            tiling.choose = shipped

    return measure


def main(argv: list[str] | None = None) -> None:
    """Tune and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tune", description=__doc__.splitlines()[0])
    parser.add_argument("--kernels", nargs="+", choices=KERNELS, default=KERNELS, help="which kernels")
    parser.add_argument("--sizes", nargs="+", type=int, default=(64, 128, 256), help="head sizes")
    parser.add_argument("--seconds", type=float, default=120, help="bound for each kernel and head size")
    parser.add_argument("--out", type=Path, default=TABLE, help="the table to change")
    arguments = parser.parse_args(argv)
    if not torch.cuda.is_available():
        parser.error("needs a CUDA device")
    device = sources.device_class(torch.device("cuda", torch.cuda.current_device()))
    for kernel, size in itertools.product(arguments.kernels, arguments.sizes):
        print(f"{kernel}, head size {size}, {device}")
        found = best(candidates(), measure_on_gpu(kernel, size, torch.bfloat16), arguments.seconds)
        if found is not None:
            write(arguments.out, entry(kernel, device, size, found[0]))


def entry(kernel: str, device: str, size: int, option: Tiling) -> dict:
    """A line of the table."""
    return {
        "kernel": kernel, "device": device, "bits": 16, "size": size, "rows": option.rows,
        "columns": option.columns, "warps": option.warps, "stages": option.stages,
    }  # fmt: skip


def write(path: Path, new: dict) -> None:
    """Put one entry into the table, one entry a line."""
    data = json.loads(path.read_text("utf-8"))
    lines = ",\n".join("    " + json.dumps(e) for e in merge(data["entries"], new))
    about = json.dumps(data["about"])
    path.write_text(f'{{\n  "about": {about},\n  "entries": [\n{lines}\n  ]\n}}\n', "utf-8")


if __name__ == "__main__":
    main()
