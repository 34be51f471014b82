"""LightNet's attention with additive decay, for images (Qin et al., arXiv 2405.21022)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidattn.backbones.mixers.base import Mixer, split
from vidattn.backbones.mixers.two_pass import in_float, read

GATES: dict[str, Callable[[Tensor], Tensor]] = {"sigmoid": torch.sigmoid, "swish": F.silu}


class LightNetAttention(Mixer):
    """Linear attention whose keys are a softmax over all tokens, per channel: no division, and no order.

    With q = SiLU(q_proj x) and k = softmax over tokens of k_proj x, o = q (sum_j k_j v_j^T); the output is
    o_proj(rms(o) * gate(g_proj x)). It is what the causal recurrence has at its last token. Names follow the
    causal layer of flash-linear-attention; the authors' code for images was never released, and what the
    paper leaves open is settled here so: the norm is over all channels, not per head, and positions turn
    the keys after their softmax.

    Args:
        dim: channels.
        num_heads: heads.
        expand_k: key channels over ``dim``.
        gate_rank: channels between the two layers of the gate; a single layer when None.
        gate: "sigmoid" (the authors) or "swish" (flash-linear-attention).
        lrpe: relative positions by :func:`md_lrpe`.

    Raises:
        ValueError: values out of range.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        *,
        expand_k: float = 1.0,
        gate_rank: int | None = None,
        gate: str = "sigmoid",
        lrpe: bool = False,
    ) -> None:
        super().__init__(dim, num_heads)
        if gate not in GATES:
            raise ValueError(f"gate={gate!r}: must be 'sigmoid' or 'swish'")
        key_dim = int(dim * expand_k)
        if key_dim < 1 or key_dim % num_heads:
            raise ValueError(
                f"expand_k={expand_k}: gives {key_dim} key channels, which num_heads={num_heads} must divide"
            )
        self.gate, self.lrpe = gate, lrpe
        self.q_proj = nn.Linear(dim, key_dim, bias=False)
        self.k_proj = nn.Linear(dim, key_dim, bias=False)
        self.v_proj = nn.Linear(dim, dim, bias=False)
        self.g_proj: nn.Module = nn.Linear(dim, dim, bias=False)
        if gate_rank is not None:
            self.g_proj = nn.Sequential(
                nn.Linear(dim, gate_rank, bias=False), nn.Linear(gate_rank, dim, bias=False)
            )
        self.g_norm = nn.RMSNorm(dim, eps=1e-5)
        self.o_proj = nn.Linear(dim, dim, bias=False)

    def mix(self, x: Tensor, prefix: Tensor | None) -> Any:
        """Prefix tokens are tokens like all others, at phase 0."""
        before = 0 if prefix is None else prefix.shape[1]
        tokens = self.tokens(x, prefix)
        q, k, v = in_float(
            F.silu(self.heads(self.q_proj(tokens))),
            self.heads(self.k_proj(tokens)),
            self.heads(self.v_proj(tokens)),
        )
        k = k.softmax(1)
        if self.lrpe:
            q, k = (md_lrpe(t, x.shape[1:-1], before) for t in (q, k))
        # ``read`` takes the mean over tokens
        out = read(q, k * k.shape[1], v).flatten(-2).to(x.dtype)
        out = self.o_proj(self.g_norm(out) * GATES[self.gate](self.g_proj(tokens)))
        mapped, rest = split(out, x, before)
        return (mapped, rest) if before else mapped


def md_lrpe(x: Tensor, grid: Sequence[int], prefix: int = 0, base: float = 10000.0) -> Tensor:
    """Multi-dimensional linear relative positions (MD-LRPE), of the cosine kind.

    A channel i of the first axis has the phase t base^(-2 i / D) at index t of that axis, from 0; each of m
    axes has ceil(D / m) channels, the last one what is left. x becomes [x cos, x sin], so that a product of
    two tokens is sum_i q_i k_i cos(difference of their phases).

    Args:
        x: (B, prefix + N, H, D).
        grid: extents; their product is N.
        prefix: tokens in front, at phase 0.
        base: of the frequencies.

    Returns:
        (B, prefix + N, H, 2 D).
    """
    size = x.shape[-1]
    per_axis = -(-size // len(grid))
    speed = base ** (-2 * torch.arange(per_axis, dtype=torch.float64, device=x.device) / size)
    phases = []
    for axis, extent in enumerate(grid):
        index = torch.arange(extent, dtype=torch.float64, device=x.device)
        shape = [1] * len(grid)
        shape[axis] = extent
        phases.append((index[:, None] * speed).reshape(*shape, per_axis).expand(*grid, per_axis))
    phase = F.pad(torch.cat(phases, -1)[..., :size].reshape(-1, size), (0, 0, prefix, 0))[:, None]
    return torch.cat([x * phase.cos().to(x.dtype), x * phase.sin().to(x.dtype)], -1)
