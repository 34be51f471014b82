"""What a patched pipeline did, per layer and step class: pattern, density, backend, or why it was dense."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vidattn.patches.log import Outcome
from vidattn.patches.model_patch import ModelPatch, Planned, patch_of
from vidattn.patches.slots import Decision
from vidattn.patches.steps import ALL, FIRST, LAST, MIDDLE
from vidattn.patches.targets import modules_of

_COLUMNS = ("model", "layers", "steps", "grid", "text", "pattern", "density", "backend", "forwards", "why")


@dataclass(frozen=True)
class LayerReport:
    """One layer in one step class at one size.

    ``density`` is the share of query-key pairs computed, 1.0 when dense; ``reason`` says why it was dense, or
    why only some calls were sparse; ``forwards`` counts the model's forwards. ``grid`` is (T, H, W), or None
    when unknown.
    """

    model: str
    layer: str
    steps: str
    grid: tuple[int, int, int] | None
    text_tokens: int
    pattern: str
    density: float
    backend: str
    reason: str
    forwards: int


@dataclass(frozen=True)
class Report:
    """The latest run of a patched pipeline. ``str()`` is a table; ``density`` is that of the whole run.

    ``layers`` is empty before the first forward; ``planned`` then tells the pattern of each layer as it was
    given.
    """

    patched: bool
    layers: tuple[LayerReport, ...] = ()
    planned: tuple[tuple[str, str, str], ...] = ()
    notes: tuple[str, ...] = ()
    density: float | None = None

    @staticmethod
    def of(patches: Sequence[ModelPatch]) -> Report:
        """The report of some models' patches."""
        # models that did not run in the pipeline's latest run would show an older one
        runs = {id(p.clock): p.clock.run for p in patches}
        rows: list[tuple[LayerReport, float]] = []
        notes: list[str] = []
        for patch in patches:
            if patch.log.run == runs[id(patch.clock)]:
                rows += _rows(patch)
                notes += [d.note for _, d in patch.log.forwards if d.note]
            notes += [patch.note] if patch.note else []
        total = sum(weight for _, weight in rows)
        density = sum(row.density * weight for row, weight in rows) / total if total else None
        planned = [
            (p.component or p.family.name, x.layer.name, "; ".join(map(str, p.slots[x.slot].spec.stages)))
            for p in patches
            for x in p.planned
        ]
        return Report(
            bool(patches), tuple(r for r, _ in rows), tuple(planned), tuple(dict.fromkeys(notes)), density
        )

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON would hold it."""
        return {
            "patched": self.patched,
            "density": self.density,
            "notes": list(self.notes),
            "layers": [asdict(row) for row in self.layers],
            "planned": [{"model": m, "layer": n, "pattern": p} for m, n, p in self.planned],
        }

    def __str__(self) -> str:
        if not self.patched:
            return "not patched"
        if not self.layers:
            lines = _folded([((model, pattern), layer) for model, layer, pattern in self.planned])
            body = [(key[0], names, key[1]) for key, names in lines]
            table = _table([("model", "layers", "pattern"), *body])
            return "\n".join(["patched; no forward yet", *table, *self.notes])
        rows = _folded([(_key(row), row.layer) for row in self.layers])
        table = _table([_COLUMNS, *((key[0], names, *key[1:]) for key, names in rows)])
        run = "unknown" if self.density is None else f"{self.density:.3f}"
        return "\n".join(
            [*table, *self.notes, f"density of the whole run: {run} (1 is dense in every layer)"]
        )


def report(pipe_or_model: Any) -> Report:
    """What the latest run of a patched pipeline or model did, layer by layer.

    A pipeline's run begins when its scheduler gets new timesteps; on a model of its own all forwards since
    ``patch`` are one run (with ``dense_steps``, since the timestep last went up). In compiled graphs calls
    are not counted: the report then says what was decided before each forward.

    Args:
        pipe_or_model: a pipeline or model, patched or not.

    Returns:
        A :class:`Report`: printable, with ``to_dict()``.

    Raises:
        TypeError: neither a pipeline nor a model.

    Example:
        >>> print(report(pipe))
    """
    patches = [p for model in modules_of(pipe_or_model).values() if (p := patch_of(model)) is not None]
    return Report.of(patches)


def _rows(patch: ModelPatch) -> list[tuple[LayerReport, float]]:
    """The layers of one model with the dense pairs that each stands for."""
    with patch.log.lock:
        forwards, outcomes = dict(patch.log.forwards), dict(patch.log.outcomes)
    made = []
    for planned in patch.planned:
        for (slot, decision), count in forwards.items():
            if slot == planned.slot:
                row = _row(patch, planned, decision, outcomes.get((planned.layer.name, decision)), count)
                pairs = float(decision.layout.tokens) ** 2 if decision.layout is not None else 0.0
                made.append((row, pairs * count * decision.share))
    return made


def _row(
    patch: ModelPatch, planned: Planned, decision: Decision, outcome: Outcome | None, count: int
) -> LayerReport:
    layout, pattern = decision.layout, decision.pattern
    density, reason = decision.density, decision.reason
    if pattern is not None and outcome is not None and outcome.dense:
        share = outcome.sparse / (outcome.sparse + outcome.dense)
        density, reason = density * share + (1.0 - share), outcome.reason
    sparse = pattern is not None and (outcome is None or outcome.sparse > 0)
    return LayerReport(
        model=patch.component or patch.family.name,
        layer=planned.layer.name,
        steps=_steps_text(decision.steps, patch),
        grid=layout.grid if layout is not None else None,
        text_tokens=layout.text_tokens if layout is not None else 0,
        pattern=pattern.to_text() if pattern is not None and sparse else "dense",
        density=density,
        backend=decision.backend if sparse else "model's own",
        reason=reason,
        forwards=count,
    )


def _steps_text(steps: str, patch: ModelPatch) -> str:
    if steps == FIRST:
        return f"first {patch.clock.first}"
    if steps == LAST:
        return f"last {patch.clock.last}"
    return {ALL: "all", MIDDLE: "others"}.get(steps, steps)


# ---------------------------------------------------------------------- printing
def _key(row: LayerReport) -> tuple[str, ...]:
    grid = "x".join(map(str, row.grid)) if row.grid else "?"
    return (
        row.model,
        row.steps,
        grid,
        str(row.text_tokens),
        row.pattern,
        f"{row.density:.3f}",
        row.backend,
        str(row.forwards),
        row.reason,
    )


def _folded(rows: list[tuple[tuple[str, ...], str]]) -> list[tuple[tuple[str, ...], str]]:
    """Rows with equal keys as one, their layer names folded: ``transformer_blocks.0-18.attn``."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for key, name in rows:
        groups.setdefault(key, []).append(name)
    return [(key, part) for key, names in groups.items() for part in _fold_names(names)]


def _fold_names(names: list[str]) -> list[str]:
    """Names that differ in one number, in unbroken runs of it, as ``first-last`` at that number."""
    folded: list[tuple[list[str], int, int]] = []  # split name, where the number stands, its latest value
    for name in names:
        parts = re.split(r"(\d+)", name)
        previous, place, latest = folded[-1] if folded else ([], 0, 0)
        differing = [i for i, (a, b) in enumerate(zip(previous, parts, strict=False)) if a != b]
        if len(previous) == len(parts) and len(differing) == 1 and differing[0] % 2:
            at = differing[0]
            if int(parts[at]) == (latest if place == at else int(previous[at])) + 1 and place in (0, at):
                folded[-1] = (previous, at, int(parts[at]))
                continue
        folded.append((parts, 0, 0))
    return ["".join([*p[:at], f"{p[at]}-{end}", *p[at + 1 :]]) if at else "".join(p) for p, at, end in folded]


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
