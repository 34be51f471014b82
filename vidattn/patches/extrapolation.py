"""CLEAR's two aids for sizes beyond the training's: a greater base of the rotary positions (NTK), and a scale
of the scores that grows with the number of tokens (proportional attention). Both are off unless asked for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import nn

from vidattn.layout import TokenLayout
from vidattn.patches.presets import Rule
from vidattn.patches.schedule import Stage

NTK, PROPORTIONAL = "ntk_factor", "proportional"


class RopeBase:
    """The base theta of a model's rotary positions, ``factor`` times as great while set.

    It belongs to the model, not to a layer: it is set in forwards in which any layer follows a pattern.

    Args:
        module: holds ``theta``; None when there is nothing to change.
        factor: 10 in CLEAR's recipe.
    """

    def __init__(self, module: Any, factor: float) -> None:
        self.module, self.factor = module, factor
        self._own: Any = None

    def set(self, on: bool) -> None:
        """Put the factor on, or take it off."""
        if self.module is None or on == (self._own is not None):
            return
        if on:
            self._own = self.module.theta
            self.module.theta = self._own * self.factor
        else:
            self.module.theta, self._own = self._own, None


def rope_base(model: nn.Module, stages: Sequence[Stage]) -> RopeBase:
    """The rotary base that the rules ask for.

    Raises:
        ValueError: rules that ask for different factors, a factor that is not a positive number, or a model
            whose rotary base is not known.
    """
    factors = {dict(s.rule.options).get(NTK, 1.0) for s in stages if not s.rule.dense}
    for factor in factors:
        if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 0 < factor < math.inf:
            raise ValueError(f"{NTK}={factor!r}: must be a number greater than 0")
    wanted = factors - {1.0}
    if not wanted:
        return RopeBase(None, 1.0)
    if len(wanted) > 1:
        raise ValueError(f"{NTK}: the layers of a model share one, but {sorted(wanted)} are asked for")
    positions = getattr(model, "pos_embed", None)
    if not isinstance(getattr(positions, "theta", None), (int, float)):
        raise ValueError(f"{NTK}: {type(model).__name__} has no rotary positions with a base theta")
    return RopeBase(positions, wanted.pop())


def scale_factor(rule: Rule, layout: TokenLayout) -> float:
    """sqrt(log N / log N0): N keys before masking, N0 those of the training size, 4608 for FLUX.1 with 512
    text tokens. With pooled keys CLEAR counts 10 N.
    """
    options = dict(rule.options)
    if not options.get(PROPORTIONAL, False):
        return 1.0
    trained = rule.native[0] * rule.native[1] + layout.text_tokens
    tokens = layout.tokens * (10 if options.get("pooled", 0) else 1)
    return math.sqrt(math.log(tokens) / math.log(trained))
