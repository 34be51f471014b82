"""How results are kept: a JSON file with the figures, and what they were measured on."""

from __future__ import annotations

import json
import platform
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("triton", "diffusers", "transformers", "natten", "xformers")


def machine(device: torch.device) -> dict[str, Any]:
    """The device and the versions that decide a figure."""
    from importlib.metadata import PackageNotFoundError, version

    versions = {"python": platform.python_version(), "torch": torch.__version__}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "absent"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    threads = {} if device.type == "cuda" else {"threads": torch.get_num_threads()}
    return {"device": name, **threads, "versions": versions}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def commit() -> str:
    """The commit that was measured, with "+changes" where the tree differs; "unknown" outside a checkout."""
    try:
        git = ["git", "-C", str(Path(__file__).parent)]
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        dirty = subprocess.run(
            [*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("+changes" if dirty.stdout.strip() else "")


def save(path: Path, rows: list[dict[str, Any]], device: torch.device, **more: Any) -> Path:
    """Write ``rows`` as JSON with machine, commit, command and date; returns the path."""
    record = {
        "command": command(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        **machine(device),
        **more,
        "rows": rows,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return path


def command() -> str:
    """What was typed to get here."""
    name = getattr(getattr(sys.modules["__main__"], "__spec__", None), "name", "")
    # the installed script, and ``python -m vidattn.cli``
    start = f"python -m {name}" if name and not name.startswith("vidattn.cli") else "vidattn"
    return " ".join([start, *map(shlex.quote, sys.argv[1:])])


def table(rows: list[dict[str, Any]], columns: list[str]) -> str:
    """The rows as a Markdown table."""

    def cell(value: Any) -> str:
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(cell(row.get(c, "")) for c in columns) + " |" for row in rows]
    return "\n".join(lines)
