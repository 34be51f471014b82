"""Which queries run together, and with which keys: a plan's tiles cut into batches of bounded size, then the text rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vidattn.backends.problem import Problem
from vidattn.patterns.base import coordinates
from vidattn.plan import Bucket


@dataclass(frozen=True)
class Batch:
    """Queries that run together: the rows of c tiles, the keys of each tile, and who may not see whom.

    ``queries`` (c, M) and ``keys`` (c, K) are token numbers; ``keys`` None means every key, in order. ``mask`` is bool and
    broadcasts to (B, c, M, K), True where the query sees the key; None where it always does.
    """

    queries: Tensor
    keys: Tensor | None
    mask: Tensor | None


def batches(problem: Problem, device: torch.device, cost: int, budget: int) -> Iterator[Batch]:
    """Every query of the call in exactly one batch.

    Args:
        problem: the call.
        device: where the numbers and masks are made.
        cost: what one (query or key) token of a tile costs, in elements, see ``budget``.
        budget: elements that a batch may hold; a single tile may exceed it.
    """
    layout = problem.layout
    text = layout.text_index().to(device)
    everywhere = torch.cat([text, torch.arange(layout.tokens, layout.tokens + problem.extra, device=device)])
    valid = problem.key_valid(device)
    for bucket in problem.pattern.plan(layout).buckets(device):
        mask = None if bucket.full else _element_mask(problem, bucket)
        if mask is not None and len(everywhere):
            mask = torch.cat([mask, mask.new_ones(len(mask), len(everywhere))], 1)
        tokens = len(bucket.query_offset) + bucket.keys + len(everywhere)
        count = max(1, budget // (cost * tokens))
        for start in range(0, len(bucket.query_base), count):
            yield _tiles(problem, bucket, slice(start, start + count), everywhere, mask, valid)
    if len(text):
        keep = None if valid is None else valid[:, None, None, :]
        yield Batch(text[None], None, keep)


def _element_mask(problem: Problem, bucket: Bucket) -> Tensor:
    """(M, K): the first tile's mask is that of all tiles of the bucket."""
    queries = bucket.query_base[0] + bucket.query_offset
    keys = bucket.key_base[0] + bucket.key_offset
    grid = problem.layout.grid
    return problem.pattern.allowed(coordinates(queries[:, None], grid), coordinates(keys[None, :], grid), grid)


def _tiles(
    problem: Problem, bucket: Bucket, part: slice, everywhere: Tensor, mask: Tensor | None, valid: Tensor | None
) -> Batch:
    before = problem.layout.text_before
    queries = bucket.query_base[part, None] + (bucket.query_offset + before)
    keys = bucket.key_base[part] + (bucket.key_offset + before)
    if len(everywhere):
        keys = torch.cat([keys, everywhere.expand(len(keys), -1)], 1)
    if valid is not None and problem.layout.text_tokens:
        real = valid[:, keys][:, :, None, :]
        return Batch(queries, keys, real if mask is None else mask & real)
    return Batch(queries, keys, None if mask is None else mask[None, None])
