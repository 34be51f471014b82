"""The kinds of attention that can stand in for softmax attention by a preset's name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vidattn.composite import attention_with_pooled
from vidattn.layout import TokenLayout
from vidattn.linear import (
    FeatureMapAttention,
    GatedAttention,
    HybridLinearAttention,
    LinFusionBranch,
    SoftmaxAttention,
    SparseLinearAttention,
)
from vidattn.patches.families import Family, Layer, family_of
from vidattn.patches.slots import CURRENT
from vidattn.patches.substitutes import Substitute
from vidattn.patterns import Disc, Groups, Pattern, TopK


@dataclasses.dataclass(frozen=True)
class LinFusion(Substitute):
    """LinFusion (arXiv 2409.02097) in the self-attention of Stable Diffusion's UNets.

    Args:
        mid_dim: width of its networks; None for the published one (the layer's, a 16th of it in SDXL, or what
            the weights have), -1 for the identity form.
    """

    name = "linfusion"
    families = ("unet",)
    whole = True
    backend = "linear"
    mid_dim: int | None = None

    def make(self, layer: Layer, model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> nn.Module:
        attn: Any = layer.module
        if attn.to_q.bias is not None or attn.norm_q is not None or attn.norm_cross:
            raise ValueError(f"{layer.name} is no layer for LinFusion: it has norms or biases at q and k")
        dim = attn.to_q.in_features
        mid_dim = self.mid_dim
        if mid_dim is None and shapes:
            mid_dim = shapes["to_q_.0.weight"][0] if "to_q_.0.weight" in shapes else -1
        elif mid_dim is None and getattr(model.config, "addition_embed_type", None) == "text_time":
            mid_dim = max(1, dim // 16)
        made = LinFusionBranch(dim, mid_dim)
        made.zero_()
        return made

    def layer_output(self, mixer: Any, attn: Any, hidden_states: Tensor) -> Tensor:
        out = mixer.attend(hidden_states, attn.to_q, attn.to_k, attn.to_v, attn.heads)
        return attn.to_out[1](attn.to_out[0](out))


# ------------------------------------------------------------------ on q, k and v
def _sizes(layer: Layer) -> tuple[int, int, int]:
    """Heads, head size, and width of the input of an attention layer.

    Raises:
        ValueError: the layer does not say.
    """
    attn: Any = layer.module
    to_q = getattr(attn, "to_q", None)
    to_q = getattr(to_q, "base_layer", to_q)
    heads = getattr(attn, "heads", None)
    if not isinstance(to_q, nn.Linear) or not isinstance(heads, int):
        raise ValueError(f"{layer.name} has no to_q and heads: linear attention cannot be fitted to it")
    return heads, to_q.out_features // heads, to_q.in_features


@dataclasses.dataclass(frozen=True)
class _OnHeads(Substitute):
    """A substitute that works on q, k and v, with a gate behind it if wanted."""

    gate: str = "none"

    def make(self, layer: Layer, model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> nn.Module:
        heads, head_dim, dim = _sizes(layer)
        family = family_of(model)
        mixer = self.inner(heads, head_dim, family is not None and family.kind == "video")
        return mixer if self.gate == "none" else GatedAttention(mixer, dim, heads, head_dim, self.gate)

    def inner(self, heads: int, head_dim: int, video: bool) -> nn.Module:
        """The modules without the gate."""
        raise NotImplementedError

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        layout: TokenLayout,
        scale: float | None,
        text: str,
        backend: str,
    ) -> Tensor:
        if self.gate == "none":
            return CURRENT.mixer(query, key, value, layout, scale)
        hidden, apart = CURRENT.inputs
        if apart is not None:
            hidden = torch.cat([hidden, apart] if text == "after" else [apart, hidden], 1)
        return CURRENT.mixer(query, key, value, layout, scale, inputs=hidden)


@dataclasses.dataclass(frozen=True)
class Linear(_OnHeads):
    """Linear attention with a feature map: ``vidattn.linear.FeatureMapAttention``."""

    name = "linear"
    backend = "linear"
    feature_map: str = "elu1"

    def inner(self, heads: int, head_dim: int, video: bool) -> nn.Module:
        return FeatureMapAttention(heads, head_dim, self.feature_map)


@dataclasses.dataclass(frozen=True)
class LoLCATs(_OnHeads):
    """LoLCATs' hybrid: ``vidattn.linear.HybridLinearAttention``; groups of 8x8 tokens, 4x8x8 in videos."""

    name = "lolcats"
    feature_map: str = "hedgehog"
    size: Any = None
    reach: int = 1
    affine: bool = False

    def __post_init__(self) -> None:
        self._near(False)

    def _near(self, video: bool) -> Groups:
        size = ((4, 8, 8) if video else (1, 8, 8)) if self.size is None else self.size
        return Groups(size, region="blocks", reach=self.reach)

    def inner(self, heads: int, head_dim: int, video: bool) -> nn.Module:
        size = self._near(video).size
        return HybridLinearAttention(heads, head_dim, size, self.reach, self.feature_map, self.affine)

    def density(self, layout: TokenLayout) -> float:
        return self._near(layout.grid[0] > 1).density(layout)


@dataclasses.dataclass(frozen=True)
class SLA(_OnHeads):
    """SLA: ``vidattn.linear.SparseLinearAttention`` on the best blocks of 8x8 tokens, 4x4x4 in videos."""

    name = "sla"
    keep: float = 0.2
    tile: Any = None
    feature_map: str = "softmax"

    def __post_init__(self) -> None:
        self._pattern(False)

    def _pattern(self, video: bool) -> TopK:
        tile = ((4, 4, 4) if video else (1, 8, 8)) if self.tile is None else self.tile
        return TopK(self.keep, tile, score="smooth")

    def inner(self, heads: int, head_dim: int, video: bool) -> nn.Module:
        return SparseLinearAttention(heads, head_dim, self._pattern(video), self.feature_map)

    def density(self, layout: TokenLayout) -> float:
        return self._pattern(layout.grid[0] > 1).density(layout)


@dataclasses.dataclass(frozen=True)
class Gated(_OnHeads):
    """The model's own attention with a gate behind it: ``vidattn.linear.GatedAttention``."""

    name = "gated"
    needs_training = False
    gate: str = "headwise"

    def inner(self, heads: int, head_dim: int, video: bool) -> nn.Module:
        return SoftmaxAttention()

    def density(self, layout: TokenLayout) -> float:
        return 1.0


@dataclasses.dataclass(frozen=True)
class PooledDisc(Substitute):
    """CLEAR's disc with pooled keys, whose weights in the cell are learned, one set per layer; with equal
    ones, as at the start, it is ``Disc(radius, pooled)``.
    """

    name = "clear"
    needs_training = False
    radius: float = 16
    pooled: int = 4

    def make(self, layer: Layer, model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> nn.Module:
        made = nn.Module()
        made.processor = nn.Module()  # the authors keep the weights on their processor
        f = self.pooled
        made.processor.spatial_weight = nn.Parameter(torch.full((1, 1, 1, f, 1, f, 1), 1 / f**2))
        return made

    def density(self, layout: TokenLayout) -> float:
        return Disc(self.radius, self.pooled).density(layout)

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        layout: TokenLayout,
        scale: float | None,
        text: str,
        backend: str,
    ) -> Tensor:
        weight = CURRENT.mixer.processor.spatial_weight.view(self.pooled, self.pooled)
        pattern = Disc(self.radius, self.pooled)
        return attention_with_pooled(query, key, value, pattern, layout, weight, scale, backend)


SUBSTITUTES: dict[str, type[Substitute]] = {cls.name: cls for cls in (LinFusion, Linear, LoLCATs, SLA, Gated)}


def read_value(text: str) -> Any:
    """An option's value as a preset's text form writes it: none, true, false, a number, a size as 1x8x8, or a
    word.
    """
    words: dict[str, Any] = {"none": None, "true": True, "false": False}
    if text.lower() in words:
        return words[text.lower()]
    for read in (int, float, lambda t: tuple(int(part) for part in t.split("x"))):
        try:
            return read(text)
        except ValueError:
            continue
    return text


def as_run(preset: str, pattern: Pattern | Substitute) -> Pattern | Substitute:
    """What runs for a preset's pattern: CLEAR's pooled keys have weights to learn or load, others run as they
    are.
    """
    if preset == PooledDisc.name and isinstance(pattern, Disc) and pattern.pooled:
        return PooledDisc(pattern.radius, pattern.pooled)
    return pattern


def check_family(substitute: Substitute, family: Family) -> None:
    """Refuse a family that the substitute is not for.

    Raises:
        ValueError: naming both.
    """
    allowed = substitute.families
    if allowed and family.name not in allowed:
        raise ValueError(
            f"preset {substitute.name!r} is for {', '.join(allowed)} models, not for {family.name}"
        )
