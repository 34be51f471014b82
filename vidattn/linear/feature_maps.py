"""Feature maps phi for linear attention, in which phi(q) . phi(k) stands for exp(q . k)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vidattn.linear.chunks import FEATURE_MAPS
from vidattn.patterns.text import nearest

LEARNED = ("hedgehog", "hedgehog-joint", "hedgehog-exp")
KINDS = (*FEATURE_MAPS, *LEARNED)
_LEAST = 1e-12


class FeatureMap(nn.Module):
    """phi for queries or keys (B, S, H, D), with learned weights of its own for each head where it has any.

    The Hedgehog maps (Zhang et al., arXiv 2402.04347) are [f(Wx), f(-Wx)] with W of shape (D, F) per head:

    * ``"hedgehog"``: softmax over the features, each half apart, at least 1e-12 (LoLCATs' code);
    * ``"hedgehog-joint"``: one softmax over [2Wx, -2Wx] (flash-linear-attention's code);
    * ``"hedgehog-exp"``: exp(y - max y) and exp(-y + min y) with y = Wx, the paper's map, stabilised.

    ``"elu1"``, ``"relu"``, ``"softmax"`` and ``"identity"`` have no weights.

    Args:
        kind: one of these.
        num_heads: H.
        head_dim: D.
        feature_dim: F; D when None.
        init: "identity" (needs F = D), for which phi starts out spiky as softmax is, or "kaiming", as
            LoLCATs' configurations have it.

    Raises:
        ValueError: another kind or init, or sizes that do not fit.
    """

    def __init__(
        self,
        kind: str,
        num_heads: int,
        head_dim: int,
        feature_dim: int | None = None,
        init: str = "identity",
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"feature_map={kind!r}: {nearest(str(kind), list(KINDS))}")
        if init not in ("identity", "kaiming"):
            raise ValueError(f"init={init!r}: must be 'identity' or 'kaiming'")
        features = head_dim if feature_dim is None else feature_dim
        if features < 1 or (init == "identity" and kind in LEARNED and features != head_dim):
            raise ValueError(f"feature_dim={feature_dim!r}: must be head_dim={head_dim} for init='identity'")
        self.kind = kind
        if kind in LEARNED:
            start = torch.empty(num_heads, head_dim, features)
            if init == "identity":
                start.copy_(torch.eye(head_dim))
            else:
                nn.init.kaiming_uniform_(start)
            self.weight = nn.Parameter(start)

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, H, D) to (B, S, H, 2F) for the learned kinds, else (B, S, H, D); in float32 at least."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        if self.kind not in LEARNED:
            return FEATURE_MAPS[self.kind](x)
        y = torch.einsum("bshd,hdf->bshf", x, self.weight.to(x.dtype))
        if self.kind == "hedgehog-joint":
            return torch.cat([2 * y, -2 * y], -1).softmax(-1)
        if self.kind == "hedgehog":
            return torch.cat([y.softmax(-1), (-y).softmax(-1)], -1).clamp(min=_LEAST)
        up, down = y - y.amax(-1, keepdim=True), y.amin(-1, keepdim=True) - y
        return torch.cat([up, down], -1).exp()
