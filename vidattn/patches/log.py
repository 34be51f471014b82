"""What patched layers did during the latest run. Written only outside compiled graphs."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

from vidattn.patches.slots import Decision, Slot


@dataclass
class Outcome:
    """Calls of one layer under one decision."""

    sparse: int = 0
    dense: int = 0
    reason: str = ""


@dataclass(eq=False)
class RunLog:
    """Forwards and calls of one model since its run began."""

    run: int = -1
    forwards: dict[tuple[int, Decision], int] = field(default_factory=dict)
    outcomes: dict[tuple[str, Decision], Outcome] = field(default_factory=dict)
    lock: Any = field(default_factory=threading.Lock)

    def __reduce__(self) -> tuple[type[RunLog], tuple]:
        return RunLog, ()  # a copied model has run nothing yet

    def forward(self, run: int, decisions: list[Decision]) -> None:
        """Count one forward with the slots' decisions. Another ``run`` than before clears the log."""
        with self.lock:
            if run != self.run:
                self.run = run
                self.forwards.clear()
                self.outcomes.clear()
            for slot, whole in enumerate(decisions):
                for decision in whole.each():
                    self.forwards[slot, decision] = self.forwards.get((slot, decision), 0) + 1

    def outcome(self, layer: str, decision: Decision) -> Outcome:
        """The entry of one layer, made when missing. Call it with the lock held."""
        return self.outcomes.setdefault((layer, decision), Outcome())


@dataclass(eq=False)
class LayerLog:
    """What one attention module reports to: its name and its model's log."""

    name: str
    log: RunLog

    def called(self, decision: Decision, reason: str) -> None:
        """Attention over the grid came by; it was dense if ``reason`` says so or there is no pattern."""
        with self.log.lock:
            outcome = self.log.outcome(self.name, decision)
            if reason or decision.pattern is None:
                outcome.dense += 1
                outcome.reason = reason or outcome.reason
            else:
                outcome.sparse += 1

    def bypassed(self, slot: Slot, decision: Decision, reason: str) -> None:
        """The layer ran, and no attention over the grid came by.

        Raises:
            RuntimeError: it was to be sparse, and the patch is strict.
        """
        parts = decision.each()
        with self.log.lock:
            for part in parts:
                outcome = self.log.outcome(self.name, part)
                outcome.dense += 1
                outcome.reason = reason
        if slot.spec.strict and any(part.pattern is not None for part in parts):
            raise RuntimeError(f"vidattn: {self.name} ran dense although strict=True: {reason}")
