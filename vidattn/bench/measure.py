"""Time and peak memory of a function, on a GPU and on a CPU."""

from __future__ import annotations

import contextlib
import ctypes
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Action = Callable[[], Any]


def milliseconds(action: Action, device: torch.device, repeats: int = 7) -> dict[str, float]:
    """``ms``: the median time of a call, after a warm-up.

    On a CPU with one thread it is the least processor time, which other processes disturb little, and
    ``clock ms`` the median time on the clock.
    """
    if device.type == "cuda":
        from triton.testing import do_bench

        return {"ms": float(do_bench(action, warmup=50, rep=200, return_mode="median"))}
    action()
    wall, processor = [], []
    for _ in range(repeats):
        started, used = time.perf_counter(), time.process_time()
        action()
        processor.append(1e3 * (time.process_time() - used))
        wall.append(1e3 * (time.perf_counter() - started))
    clock = statistics.median(wall)
    return {"ms": min(processor), "clock ms": clock} if torch.get_num_threads() == 1 else {"ms": clock}


def peak_memory(action: Action, device: torch.device) -> float | None:
    """MiB that a call takes at its highest beyond what was there before, its results included; None where
    that cannot be read.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        action()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not clear.exists():
        return None
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # freed memory would hide what the call takes
    before = _read(status, "VmRSS")
    try:
        clear.write_text("5")  # resets the high-water mark
    except OSError:
        return None
    action()
    return (_read(status, "VmHWM") - before) / 1024


def _read(status: Path, name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+)", status.read_text())
    return int(found.group(1)) if found else 0


def copy_milliseconds(size: float, device: torch.device) -> float:
    """How long this device takes to move that many bytes, half of them read and half written."""
    source = torch.empty(int(size) // 2, dtype=torch.uint8, device=device).fill_(1)
    target = torch.empty_like(source)
    return milliseconds(lambda: target.copy_(source), device)["ms"]
