"""Which queries run together, and with which keys: a plan's tiles cut into batches of bounded size, then the
text rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vidattn.backends.problem import Problem
from vidattn.patterns.base import GridPattern, coordinates
from vidattn.patterns.full import Full
from vidattn.patterns.segments import Segments
from vidattn.plan import Bucket

# Queries of a segment that run together: more would need more memory for their scores against all its keys.
_SEGMENT_ROWS = 256


@dataclass(frozen=True)
class Batch:
    """Queries that run together: the rows of c tiles, the keys of each tile, and who may not see whom.

    ``queries`` (c, M) and ``keys`` (c, K) are token numbers; ``keys`` None means every key, in order.
    ``bias`` is added to the scores and broadcasts to (B, c, M, K): 0 where the query sees the key, -inf where
    not; None where it always does.
    """

    queries: Tensor
    keys: Tensor | None
    bias: Tensor | None


def batches(
    problem: Problem, device: torch.device, dtype: torch.dtype, cost: int, budget: int
) -> Iterator[Batch]:
    """Every query of the call in exactly one batch.

    Args:
        problem: the call.
        device: where the numbers and biases are made.
        dtype: of the biases.
        cost: what one (query or key) token of a tile costs, in elements, see ``budget``.
        budget: elements that a batch may hold; a single tile may exceed it.
    """
    layout, pattern = problem.layout, problem.pattern
    real = problem.key_valid(device)
    padding = None if real is None else as_bias(real, dtype)
    hidden = None if padding is None else padding[:, None, None, :]
    if isinstance(pattern, Full):
        yield Batch(torch.arange(layout.tokens, device=device)[None], None, hidden)
        return
    if isinstance(pattern, Segments):
        yield from _segments(problem, pattern, padding, device)
        return
    if not isinstance(pattern, GridPattern):
        raise TypeError(f"pattern={pattern}: is not one that runs as tiles of a plan")
    text, everywhere = layout.text_index(device), seen_by_all(problem, device)
    for bucket in pattern.plan(layout).buckets(device):
        bias = None if bucket.full else as_bias(_element_mask(problem, pattern, bucket), dtype)
        if bias is not None and len(everywhere):
            bias = torch.cat([bias, bias.new_zeros(len(bias), len(everywhere))], 1)
        tokens = len(bucket.query_offset) + bucket.keys + len(everywhere)
        count = max(1, budget // (cost * tokens))
        for start in range(0, len(bucket.query_base), count):
            yield _tiles(problem, bucket, slice(start, start + count), everywhere, bias, padding)
    if len(text):
        if problem.extra and not pattern.text_sees_extra:
            bias = torch.zeros(1, 1, 1, layout.tokens + problem.extra, dtype=dtype, device=device)
            bias[..., layout.tokens :] = float("-inf")
            hidden = bias if hidden is None else hidden + bias
        yield Batch(text[None], None, hidden)


def seen_by_all(problem: Problem, device: torch.device) -> Tensor:
    """Numbers of the keys that every query of the grid sees: text and extra tokens."""
    layout = problem.layout
    extra = torch.arange(layout.tokens, layout.tokens + problem.extra, device=device)
    return torch.cat([layout.text_index(device), extra])


def _segments(
    problem: Problem, pattern: Segments, padding: Tensor | None, device: torch.device
) -> Iterator[Batch]:
    """The segments that see the same keys together, in pieces whose scores stay small on their own."""
    extra = problem.layout.tokens, problem.layout.tokens + problem.extra
    for queries, keys in pattern.groups(problem.layout):
        rows, columns = (
            torch.cat([torch.arange(*run, device=device) for run in runs])
            for runs in (queries, [*keys, extra])
        )
        hidden = None if padding is None else padding[:, None, None, columns]
        for part in rows.split(_SEGMENT_ROWS):
            yield Batch(part[None], columns[None], hidden)


def as_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where ``mask`` is True, -inf elsewhere."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, float("-inf"))


def _element_mask(problem: Problem, pattern: GridPattern, bucket: Bucket) -> Tensor:
    """(M, K): the first tile's mask is that of all tiles of the bucket."""
    queries = bucket.query_base[0] + bucket.query_offset
    keys = bucket.key_base[0] + bucket.key_offset
    grid = problem.layout.grid
    return pattern.allowed(coordinates(queries[:, None], grid), coordinates(keys[None, :], grid), grid)


def _tiles(
    problem: Problem,
    bucket: Bucket,
    part: slice,
    everywhere: Tensor,
    bias: Tensor | None,
    padding: Tensor | None,
) -> Batch:
    before = problem.layout.text_before
    queries = bucket.query_base[part, None] + (bucket.query_offset + before)
    keys = bucket.key_base[part] + (bucket.key_offset + before)
    if len(everywhere):
        keys = torch.cat([keys, everywhere.expand(len(keys), -1)], 1)
    if padding is not None and problem.layout.text_tokens:
        hidden = padding[:, keys][:, :, None, :]
        return Batch(queries, keys, hidden if bias is None else bias + hidden)
    return Batch(queries, keys, None if bias is None else bias[None, None])
