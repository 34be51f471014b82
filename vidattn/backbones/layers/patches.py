"""Stems and downsamplers that several families share."""

from __future__ import annotations

from torch import Tensor, nn

from vidattn.backbones.layers.conv import Conv2d
from vidattn.backbones.layers.windows import pad_to


class PatchEmbed(nn.Module):
    """A convolution whose stride is its size, and a norm. Images are padded behind to whole patches.

    Args:
        in_chans: channels in.
        dim: channels out.
        patch: size of a patch.
        norm: a norm over the channels; None leaves it out.
    """

    folds_back = (("proj", "norm"),)

    def __init__(self, in_chans: int, dim: int, patch: int, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.patch = patch
        self.proj = Conv2d(in_chans, dim, patch, patch)
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(pad_to(x, (self.patch, self.patch)))
        return x if self.norm is None else self.norm(x)
