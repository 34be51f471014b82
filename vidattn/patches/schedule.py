"""Which pattern a layer has when: stages by step range and guidance branch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vidattn.patches.presets import Rule
from vidattn.patches.steps import ALL, MIDDLE, Moment
from vidattn.patterns.text import nearest

CONDITIONAL, UNCONDITIONAL = "conditional", "unconditional"
BRANCHES = [CONDITIONAL, UNCONDITIONAL]
_KEYS = ["pattern", "steps", "branch"]


@dataclass(frozen=True)
class Stage:
    """A rule, and the part of a run in which it counts.

    Args:
        rule: where the pattern comes from.
        steps: (start, end), as shares of the run's steps: of n steps those from start * n to before end * n.
        branch: of classifier-free guidance, "" for both.
    """

    rule: Rule
    steps: tuple[float, float] = (0.0, 1.0)
    branch: str = ""

    @property
    def by_steps(self) -> bool:
        """Whether the stage is not for the whole run."""
        return self.steps != (0.0, 1.0)

    def holds(self, moment: Moment, branch: str) -> bool:
        """Whether the stage is that of a moment and a branch."""
        if self.branch and branch != self.branch:
            return False
        if not self.by_steps:
            return True
        # 0.3 * 10 is a little more than 3 to a computer
        start, end = (share * moment.length - 1e-6 for share in self.steps)
        return start <= moment.position < end

    @property
    def when(self) -> str:
        """The part of the run, as reports say it; "" for all of it."""
        steps = f"{self.steps[0]:.3g} to {self.steps[1]:.3g}" if self.by_steps else ""
        return " ".join(part for part in (steps, self.branch) if part)

    def __str__(self) -> str:
        return f"{self.rule} ({self.when})" if self.when else str(self.rule)


@dataclass(frozen=True)
class Case:
    """What of the moment matters to a slot: its step class, and its stage, or why that is not known."""

    kind: str
    stage: Stage | None
    trouble: str = ""

    @property
    def steps(self) -> str:
        """The part of the run, as the report has it."""
        named = self.stage.when if self.stage is not None and self.kind in (ALL, MIDDLE) else ""
        return named or (MIDDLE if self.stage is None and self.kind == ALL else self.kind)


def cases_of(stages: tuple[Stage, ...], moment: Moment, branches: tuple[str, ...] | str) -> tuple[Case, ...]:
    """The case of each branch in the batch, or one case when they are alike."""
    if isinstance(branches, str):
        if any(stage.branch for stage in stages):
            return (Case(moment.kind, None, trouble=branches),)
        branches = ("",)
    cases = [
        Case(moment.kind, next((stage for stage in stages if stage.holds(moment, branch)), None))
        for branch in branches
    ]
    return tuple(cases) if len(set(cases)) > 1 else (cases[0],)


def is_stage(pattern: Any) -> bool:
    """True for ``{"pattern": ..., "steps": ..., "branch": ...}``."""
    if not isinstance(pattern, Mapping):
        return False
    # with no more than a name under "pattern" it is a pattern's own dictionary form
    return bool({"steps", "branch"} & set(pattern)) or not isinstance(pattern.get("pattern", ""), str)


def is_schedule(pattern: Any) -> bool:
    """True for a stage or a list of stages."""
    return is_stage(pattern) or isinstance(pattern, (list, tuple))


def stages_in(pattern: Any) -> list[tuple[Any, tuple[float, float], str]]:
    """(pattern, steps, branch) of a stage, or of each stage of a list.

    Raises:
        ValueError, TypeError: naming what is wrong.
    """
    listed = list(pattern) if isinstance(pattern, (list, tuple)) else [pattern]
    if not listed:
        raise ValueError("pattern=[]: give at least one stage")
    return [_read_stage(stage) for stage in listed]


def _read_stage(stage: Any) -> tuple[Any, tuple[float, float], str]:
    if not is_stage(stage):  # a pattern of its own in a list: what is left, in all steps
        if isinstance(stage, (list, tuple)):
            raise TypeError(f"stage {stage!r}: give a pattern, or a dictionary with 'pattern' and 'steps'")
        return stage, (0.0, 1.0), ""
    for key in stage:
        if key not in _KEYS:
            raise ValueError(f"stage {dict(stage)!r}: unknown key {key!r}: {nearest(str(key), _KEYS)}")
    if "pattern" not in stage:
        raise ValueError(f"stage {dict(stage)!r}: 'pattern' is missing; None is dense")
    return stage["pattern"], _read_steps(stage.get("steps")), _read_branch(stage.get("branch"))


def _read_steps(steps: Any) -> tuple[float, float]:
    if steps is None:
        return 0.0, 1.0
    if (
        not isinstance(steps, Sequence)
        or isinstance(steps, str)
        or len(steps) != 2
        or any(isinstance(x, bool) or not isinstance(x, (int, float)) for x in steps)
    ):
        raise TypeError(f"steps={steps!r}: give (start, end), shares of the run from 0 to 1")
    start, end = float(steps[0]), float(steps[1])
    if not 0 <= start < end <= 1:
        raise ValueError(
            f"steps={tuple(steps)!r}: start and end are shares of the run, 0 <= start < end <= 1;"
            " for a number of dense steps there are dense_steps and dense_last_steps"
        )
    return start, end


def _read_branch(branch: Any) -> str:
    if branch is None:
        return ""
    if not isinstance(branch, str):
        raise TypeError(f"branch={branch!r}: must be 'conditional' or 'unconditional'")
    if branch not in BRANCHES:
        raise ValueError(f"branch={branch!r}: {nearest(branch, BRANCHES)}")
    return branch
