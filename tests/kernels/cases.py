"""Attention calls for the kernels, with their float64 reference."""

from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from vidattn import TokenLayout
from vidattn.attention import compute
from vidattn.backends.problem import Problem
from vidattn.kernels import tiling
from vidattn.patterns import Full
from vidattn.testing import assert_no_worse_than_eager, eager_attention, reference_attention


@dataclass
class Case:
    """One call; sizes are tiny so that the interpreter is quick, and ragged so that tiles and boxes are."""

    pattern: object
    grid: tuple
    before: int = 0
    after: int = 0
    valid: tuple | None = None
    extra: int = 0
    batch: int = 1
    heads: int = 2
    key_heads: int = 1
    size: int = 16
    value_size: int = 16
    heads_first: bool = False
    scale: float | None = None
    head_scale: tuple | None = None
    lists: object = None
    names: tuple = field(default=("out", "lse", "dq", "dk", "dv"), repr=False)

    @property
    def layout(self):
        return TokenLayout(self.grid, self.before, self.after, self.valid)

    def inputs(self, dtype=torch.float32, device="cpu"):
        make = torch.Generator().manual_seed(0)
        shapes = [
            (self.layout.tokens, self.heads, self.size),
            (self.layout.tokens + self.extra, self.key_heads, self.size),
            (self.layout.tokens + self.extra, self.key_heads, self.value_size),
        ]
        made = []
        for tokens, heads, size in shapes:
            order = (heads, tokens) if self.heads_first else (tokens, heads)
            tensor = torch.randn(self.batch, *order, size, generator=make, dtype=torch.float64)
            tensor = tensor.to(device, dtype)
            made.append((tensor.transpose(1, 2) if self.heads_first else tensor).requires_grad_())
        return made

    def mask(self):
        """(B, H, S, S + extra)"""
        layout, total = self.layout, self.layout.tokens
        mask = (self.pattern if self.lists is None else Full()).mask(layout)
        mask = mask[:, None] if mask.ndim == 3 else mask
        mask = mask.expand(self.batch, self.heads, total, total)
        if self.lists is not None:
            own = slice(self.before, self.before + layout.grid_tokens)
            mask = mask.clone()
            mask[..., own, own] = self.lists.mask().cpu()
        return torch.cat([mask, torch.ones(*mask.shape[:3], self.extra, dtype=torch.bool)], -1)

    def factor(self, device):
        number = self.size**-0.5 if self.scale is None else self.scale
        return number if self.head_scale is None else number * torch.tensor(self.head_scale, device=device)

    def run(self, inputs, backend="triton"):
        """(out, lse)"""
        layout, device = self.layout, inputs[0].device
        bare = TokenLayout(self.grid, self.before, self.after)
        number = self.size**-0.5 if self.scale is None else self.scale
        per_head = None if self.head_scale is None else torch.tensor(self.head_scale, device=device)
        valid = layout.text_valid_tensor(self.batch, device)
        problem = Problem(self.pattern, bare, number, per_head, valid, self.extra, self.lists)
        return compute(problem, *inputs, True, backend)

    def check(self, dtype=torch.float32, device="cpu"):
        """Output, lse and gradients (the lse's too) no worse than plain code in the same dtype."""
        inputs, mask = self.inputs(dtype, device), self.mask().to(device)
        factor = self.factor(device)
        exact = reference_attention(*inputs, mask, factor)
        plain = eager_attention(*inputs, mask, factor)
        got = self.run(inputs)
        make = torch.Generator().manual_seed(1)
        slopes = [torch.randn(o.shape, generator=make, dtype=torch.float64).to(device) for o in exact]
        results = []
        for outputs in (got, plain, exact):
            given = [s.to(o.dtype) for s, o in zip(slopes, outputs, strict=True)]
            results.append([*outputs, *torch.autograd.grad(outputs, inputs, given)])
        for name, one, eager, right in zip(self.names, *results, strict=True):
            try:
                if name == "lse":
                    torch.testing.assert_close(one.double(), right, rtol=0, atol=8 * torch.finfo(dtype).eps)
                else:
                    assert_no_worse_than_eager(one, eager, right)
            except AssertionError as error:
                raise AssertionError(f"{name}: {error}") from error


@contextmanager
def tiny_tiles(rows: int = 16, columns: int = 16):
    """Tiles so small that tiny grids have several, and new memory that is full of NaN."""
    plain = Tensor.new_empty

    def poisoned(self, *shape, **options):
        made = plain(self, *shape, **options)
        return made.fill_(float("nan")) if made.is_floating_point() else made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiling, "choose", lambda *_: tiling.Tiling(rows, columns, 4, 1))
        patch.setattr(Tensor, "new_empty", poisoned)
        yield
