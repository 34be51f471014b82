"""Magnitude-aware linear attention (MALA, Fan et al., arXiv 2507.00698)."""

from __future__ import annotations

from torch import Tensor

from vidattn.backbones.mixers.gated import GatedMixer, Turn
from vidattn.backbones.mixers.two_pass import elu1, in_float, read, score


class MALA(GatedMixer):
    """Linear attention with a scale and an offset instead of a division, so that long queries attend sharper.

    With f = elu + 1, t = 1 / sqrt(D) and z_i = t f(q_i) . mean_j f(k_j), the output is
    t (1 + 1 / (z_i + 1e-6)) f(q_i) mean_j f(k_j) v_j^T - z_i mean_j v_j, rotations in the first term only.
    Rows of weights sum to one (without rotations) and can be negative. The paper writes it without t; this
    is the released code's form.

    Args and errors are those of :class:`vidattn.backbones.mixers.gated.GatedMixer`.
    """

    def core(self, q: Tensor, k: Tensor, v: Tensor, turn: Turn) -> Tensor:
        """See the class."""
        dtype, scale = v.dtype, self.head_dim**-0.5
        q, k, v = in_float(q, k, v)
        q, k = elu1(q), elu1(k)
        z = scale * score(q, k)
        out = scale * (1 + 1 / (z + 1e-6)) * read(turn(q), turn(k), v) - z * v.mean(1, keepdim=True)
        return out.to(dtype)
