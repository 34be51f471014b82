"""Which step of a run a forward belongs to.

With a pipeline, the position comes from its scheduler, so that img2img starts, few-step models, Wan 2.2's two
transformers and guidance in two forwards per step all count right. Without one, a step is a change of the
timestep's value, and a run begins where the value goes up again; the length of the run is then unknown.

Nothing is read from the device unless steps matter, and then only for schedulers that do not know their step.
"""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass
from typing import Any

from torch import Tensor

ALL, FIRST, MIDDLE, LAST = "all", "first", "middle", "last"


@dataclass(frozen=True)
class Moment:
    """Where in a run a forward is: its step class, and where that was asked for the ``position`` of its step
    among ``length`` steps, both 0 if unknown. ``run`` counts runs.
    """

    kind: str
    position: int = 0
    length: int = 0
    run: int = 0


class StepClock:
    """Tells the moment of each forward; shared by the models of one pipeline.

    Args:
        pipe: the pipeline whose ``scheduler`` runs the schedule, or None.
        first: how many steps at the beginning are of class "first".
        last: how many at the end are of class "last".
        positions: whether positions matter, too; needs a pipeline.
    """

    def __init__(self, pipe: Any, first: int, last: int, positions: bool = False) -> None:
        self.first, self.last, self.positions = first, last, positions
        self.run = 0
        self._pipe = weakref.ref(pipe) if pipe is not None else None
        self._scheduler: Any = getattr(pipe, "scheduler", None)
        self._timesteps: weakref.ref[Tensor] | None = None
        self._start = 0
        self._value: float | None = None
        self._count = 0
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        # a copy of the model does not belong to the pipeline; it keeps the scheduler, which is copied with it
        return {**self.__dict__, "_pipe": None, "_timesteps": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    @property
    def pipe(self) -> Any:
        """The pipeline, or None when there is none, or not any more."""
        return self._pipe() if self._pipe is not None else None

    def tick(self, timestep: Any, scale: float, offset: float = 0.0) -> Moment:
        """The moment of a forward.

        Args:
            timestep: what the model's forward got: a number or a tensor of any shape.
            scale: the scheduler's timestep is that times ``scale`` ...
            offset: ... plus ``offset``.
        """
        with self._lock:
            pipe = self.pipe
            if pipe is not None:
                self._scheduler = pipe.scheduler
            fresh = self._new_schedule()
            if not self.first and not self.last and not self.positions:
                return Moment(ALL, run=self.run)
            if getattr(self._scheduler, "timesteps", None) is None:
                count = self._count_values(_value(timestep) * scale + offset)
                return Moment(FIRST if count < self.first else MIDDLE, count, run=self.run)
            position = self._scheduled(timestep, scale, offset, fresh)
            length = self._length(pipe)
            kind = MIDDLE if self.first or self.last else ALL
            if position < self.first:
                kind = FIRST
            elif position >= length - self.last:
                kind = LAST if self.last else kind
            return Moment(kind, position, length, self.run)

    def _new_schedule(self) -> bool:
        """Whether the scheduler got new timesteps since the last forward: a new run."""
        timesteps = getattr(self._scheduler, "timesteps", None)
        if timesteps is None or (self._timesteps is not None and self._timesteps() is timesteps):
            return False
        self._timesteps = weakref.ref(timesteps) if isinstance(timesteps, Tensor) else None
        self.run += 1
        return True

    def _length(self, pipe: Any) -> int:
        """Steps of the run."""
        length = len(self._scheduler.timesteps) - self._start
        if (
            getattr(pipe, "denoising_end", None) is not None
        ):  # SDXL's base stops early and hands over to the refiner
            length = min(length, pipe.num_timesteps)
        return length

    def _scheduled(self, timestep: Any, scale: float, offset: float, fresh: bool) -> int:
        scheduler = self._scheduler
        begin = getattr(scheduler, "begin_index", None)
        index = getattr(scheduler, "step_index", None)
        if index is None and begin is not None:
            index = begin
        if index is None and not fresh and hasattr(scheduler, "counter"):  # PNDM, whose timesteps repeat
            index = self._start + scheduler.counter
        if index is None:
            index = self._nearest(_value(timestep) * scale + offset)
        if fresh:
            self._start = begin if begin is not None else index
        return index - self._start

    def _nearest(self, value: float) -> int:
        timesteps = self._scheduler.timesteps
        return int((timesteps.double() - value).abs().argmin())

    def _count_values(self, value: float) -> int:
        if self._value is None or value > self._value:
            self._count = 0
            self.run += 1
        elif value < self._value:
            self._count += 1
        self._value = value
        return self._count


def _value(timestep: Any) -> float:
    # Wan 2.2's image-to-video has a timestep per token, 0 on the given frame
    return float(timestep.max()) if isinstance(timestep, Tensor) else float(timestep)
