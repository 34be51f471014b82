"""A token mixer as the gate of a linear layer (NiNformer, Abdullah and Aydin, arXiv 2403.02411)."""

from __future__ import annotations

from torch import Tensor, nn

from vidattn.backbones.layers.mlp import Mlp
from vidattn.backbones.mixers.base import Mixer


class NiNGate(Mixer):
    """linear(x) * m, where m is an MLP-Mixer's layer on x.

    a = x + MLP over the tokens of LN(x); m = a + MLP over the channels of LN'(a), both with a GELU. The
    block's norm stands in front: x is what it gives. The weights belong to one number of tokens; it is only
    known to work on small images (CIFAR, MNIST).

    Args:
        dim: channels.
        num_tokens: tokens of the map.
        hidden: channels inside both MLPs; twice ``dim`` when None.

    Raises:
        ValueError: values under 1; in the forward pass, another number of tokens.
    """

    takes_prefix = False

    def __init__(self, dim: int, num_tokens: int, hidden: int | None = None) -> None:
        super().__init__(dim, 1)
        hidden = 2 * dim if hidden is None else hidden
        if num_tokens < 1 or hidden < 1:
            raise ValueError(f"num_tokens={num_tokens}, hidden={hidden}: must be at least 1")
        self.num_tokens = num_tokens
        self.token_norm, self.token_mlp = nn.LayerNorm(dim), Mlp(num_tokens, hidden)
        self.channel_norm, self.channel_mlp = nn.LayerNorm(dim), Mlp(dim, hidden)
        self.linear = nn.Linear(dim, dim)

    def mix(self, x: Tensor, prefix: Tensor | None) -> Tensor:
        """See the class."""
        tokens = self.tokens(x)
        if tokens.shape[1] != self.num_tokens:
            raise ValueError(
                f"x has a grid of {tuple(x.shape[1:-1])}: must have num_tokens={self.num_tokens} tokens"
            )
        gate = tokens + self.token_mlp(self.token_norm(tokens).transpose(1, 2)).transpose(1, 2)
        gate = gate + self.channel_mlp(self.channel_norm(gate))
        return (self.linear(tokens) * gate).unflatten(1, x.shape[1:-1])
