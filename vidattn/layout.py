"""Where each token of a sequence stands: a raster grid of image or video tokens, with text before or after
it.

Letters used in this package: B batch, S tokens of the whole sequence, N tokens of the grid, H heads, D head
size, T frames, and (t, y, x) the position of a grid token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Grid = tuple[int, int, int]


def canonical_grid(grid: Sequence[int], name: str = "grid") -> Grid:
    """``grid`` as (T, H, W); one or two entries get leading ones.

    Raises:
        ValueError: not one to three positive integers.
    """
    if isinstance(grid, (int, str)) or not 1 <= len(grid) <= 3:
        raise ValueError(f"{name}={grid!r}: give (T, H, W), (H, W) or (L,) as positive integers")
    if any(isinstance(n, bool) or not isinstance(n, (int, torch.SymInt)) or n < 1 for n in grid):
        raise ValueError(f"{name}={tuple(grid)!r}: every extent must be an integer of at least 1")
    full = (1,) * (3 - len(grid)) + tuple(grid)
    return full[0], full[1], full[2]


def _count(value: int, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)) or value < 0:
        raise ValueError(f"{name}={value!r}: must be an integer of at least 0")
    return value


@dataclass(frozen=True, eq=False)
class TokenLayout:
    """A grid of tokens in raster order (t, then y, then x) between two runs of text tokens.

    Args:
        grid: (T, H, W) in tokens; (H, W) and (L,) are accepted and get leading ones.
        text_before: text tokens in front of the grid (FLUX, CogVideoX).
        text_after: text tokens behind the grid (SD3, HunyuanVideo).
        text_valid: None when all text is real, else for each batch item how many text tokens are real, as a
            sequence of integers or an integer tensor of shape (B,). Text tokens are counted through
            ``text_before`` and then ``text_after``; those from ``text_valid[b]`` on are padding, which no
            query sees.

    Raises:
        ValueError: a count is not an integer in range.

    Example:
        >>> TokenLayout((1, 32, 32), text_before=77).tokens
        1101
    """

    grid: Grid
    text_before: int = 0
    text_after: int = 0
    text_valid: tuple[int, ...] | Tensor | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "grid", canonical_grid(self.grid))
        _count(self.text_before, "text_before")
        _count(self.text_after, "text_after")
        valid = self.text_valid
        if valid is None:
            return
        if isinstance(valid, Tensor):
            if valid.ndim != 1 or valid.is_floating_point() or valid.dtype == torch.bool:
                raise ValueError(
                    f"text_valid of shape {tuple(valid.shape)}, {valid.dtype}: must be an"
                    " integer tensor of shape (B,)"
                )
            return
        counts = (valid,) if isinstance(valid, int) else tuple(valid)
        for count in counts:
            if _count(count, "text_valid") > self.text_tokens:
                raise ValueError(f"text_valid={counts}: the layout has only {self.text_tokens} text tokens")
        object.__setattr__(self, "text_valid", counts)

    @property
    def grid_tokens(self) -> int:
        """Tokens of the grid."""
        return self.grid[0] * self.grid[1] * self.grid[2]

    @property
    def text_tokens(self) -> int:
        """Text tokens, padding included."""
        return self.text_before + self.text_after

    @property
    def tokens(self) -> int:
        """All tokens: the sequence length S."""
        return self.grid_tokens + self.text_tokens

    def text_index(self, device: torch.device | str = "cpu") -> Tensor:
        """Positions of the text tokens in the sequence, shape (text_tokens,), int64, made on ``device``."""
        after = self.text_before + self.grid_tokens
        first = torch.arange(self.text_before, device=device)
        return torch.cat([first, torch.arange(after, after + self.text_after, device=device)])

    def text_valid_tensor(self, batch: int, device: torch.device) -> Tensor | None:
        """``text_valid`` as an int64 tensor of shape (batch,) on ``device``; a single count serves every
        item.

        Raises:
            ValueError: there are neither one nor ``batch`` counts.
        """
        if self.text_valid is None:
            return None
        valid = torch.as_tensor(self.text_valid, dtype=torch.int64, device=device)
        if valid.shape[0] not in (1, batch):
            raise ValueError(f"text_valid has {valid.shape[0]} counts for a batch of {batch}")
        return valid.expand(batch)

    def real_keys(self, valid: Tensor, extra: int = 0) -> Tensor:
        """Which keys are real when ``valid`` (B,) text tokens are: bool (B, S + extra) on ``valid``'s
        device.
        """
        real = torch.ones(valid.shape[0], self.tokens + extra, dtype=torch.bool, device=valid.device)
        number = torch.arange(self.text_tokens, device=valid.device)
        real[:, self.text_index(valid.device)] = number < valid[:, None]
        return real

    def key_valid(self) -> Tensor | None:
        """Which keys are real: bool of shape (B, S) on the CPU, or None when all are."""
        if self.text_valid is None:
            return None
        return self.real_keys(torch.as_tensor(self.text_valid, dtype=torch.int64, device="cpu"))

    def _key(self) -> tuple[Grid, int, int]:
        return self.grid, self.text_before, self.text_after

    def __hash__(self) -> int:
        return hash(self._key())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TokenLayout) or self._key() != other._key():
            return False
        mine, theirs = self.text_valid, other.text_valid
        if mine is None or theirs is None:
            return mine is theirs
        return torch.equal(torch.as_tensor(mine).cpu().long(), torch.as_tensor(theirs).cpu().long())
