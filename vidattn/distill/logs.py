"""The log of a run: a line of JSON per step, and tensorboard's events where it is installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FILE = "log.jsonl"


class Log:
    """Writes ``log.jsonl``; one process does.

    Args:
        folder: of the run.
        step: updates made so far. Lines of later ones, written by a run that was killed after its last
            checkpoint, are dropped.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self.path = folder / FILE
        kept = [row for row in read(folder) if row["step"] <= step]
        text = "".join(json.dumps(row) + "\n" for row in kept)
        partial = self.path.with_suffix(".partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(self.path)
        self._events: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:  # tensorboard is optional
            return
        self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        """One line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        if self._events is not None:
            for name, value in values.items():
                self._events.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush the events."""
        if self._events is not None:
            self._events.close()


def read(folder: str | Path) -> list[dict[str, Any]]:
    """The lines of a run's log; a last line that was cut off by a kill is left out."""
    path = Path(folder) / FILE
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows
