"""Patched models compute what their pattern says: nothing else, and nothing less."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import vidattn
from tests.patches.tiny_pipelines import NAMES, TEXT, build, run
from vidattn import TokenLayout
from vidattn.patterns import Disc, Groups, Neighborhood, Pattern, Radial

# the grids that a 64 x 96 px picture (Wan: 32 x 48 px, 9 frames) has in each model, written down by hand
LAYOUTS = {
    "flux": [TokenLayout((1, 4, 6), text_before=TEXT)],
    "wan": [TokenLayout((3, 2, 3))],
    "sd": [TokenLayout((1, 8, 12)), TokenLayout((1, 4, 6))],
    "sdxl": [TokenLayout((1, 4, 6))],
}
# self-attention calls of a run: layers x forwards (Wan guides in two forwards per step)
CALLS = {"flux": 4 * 2, "wan": 2 * 4, "sd": 4 * 2, "sdxl": 8 * 2}


@contextmanager
def planted_masks(pattern: Pattern, layouts: list[TokenLayout]) -> Iterator[list[int]]:
    """Brute force: torch's own attention gets the pattern's mask where a model attends to the whole grid."""
    real, masks, seen = F.scaled_dot_product_attention, {x.tokens: pattern.mask(x) for x in layouts}, []

    def masked(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **options
    ) -> Tensor:
        length = query.shape[-2]
        if attn_mask is None and length == key.shape[-2] and length in masks:
            attn_mask = masks[length]
            seen.append(length)
        return real(query, key, value, attn_mask=attn_mask, **options)

    F.scaled_dot_product_attention = masked
    try:
        yield seen
    finally:
        F.scaled_dot_product_attention = real


def rounding(latents: Tensor) -> dict[str, float]:
    """Tolerances for float32 latents of any size."""
    return {"rtol": 0, "atol": 2e-5 * float(latents.abs().max())}


@pytest.mark.parametrize("name", NAMES)
def test_a_window_as_large_as_the_grid_changes_nothing(name, sparse_calls):
    pipe = build(name)
    before = run(name, pipe)
    for backend in ("auto", "torch"):
        vidattn.patch(pipe, "neighborhood", window=99, min_tokens=0, backend=backend)
        torch.testing.assert_close(run(name, pipe), before, **rounding(before))
        assert len(sparse_calls) == CALLS[name]
        sparse_calls.clear()


PATTERNS = [
    Neighborhood((1, 3)),
    Neighborhood(3, causal=(False, True, False)),
    Disc(1.5),
    Groups((1, 2, 2)),
    Groups((1, 2, 2), region="cross"),
    Radial(0.5),
]


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_patched_equals_brute_force_with_the_mask(name, pattern, sparse_calls):
    pipe = build(name)
    before = run(name, pipe)
    with planted_masks(pattern, LAYOUTS[name]) as seen:
        expected = run(name, pipe)
    assert len(seen) == CALLS[name]
    vidattn.patch(pipe, pattern, min_tokens=0)
    got = run(name, pipe)
    assert len(sparse_calls) == CALLS[name]
    torch.testing.assert_close(got, expected, **rounding(expected))
    if not all(pattern.covers(layout.grid) for layout in LAYOUTS[name]):
        far = (expected - before).abs().max()
        assert far > 20 * (got - expected).abs().max(), "the oracle could not tell this pattern from dense"


SIZES = {
    "flux": [(64, 64, (1, 4, 4)), (64, 96, (1, 4, 6)), (96, 64, (1, 6, 4))],
    "wan": [(32, 32, (3, 2, 2)), (32, 48, (3, 2, 3)), (48, 32, (3, 3, 2))],
    "sd": [(64, 64, (1, 8, 8)), (64, 96, (1, 8, 12)), (104, 72, (1, 13, 9))],
    "sdxl": [(64, 64, (1, 4, 4)), (64, 96, (1, 4, 6)), (104, 72, (1, 7, 5))],
}


@pytest.mark.parametrize("name", NAMES)
def test_three_sizes_and_two_pictures_with_guidance_in_one_patch(name, sparse_calls):
    pipe, pattern = build(name), Neighborhood((2, 3))
    guided = {
        "prompt": ["a photo", "a red dog"],
        "negative_prompt": ["a dog", "a dog"],
        "num_inference_steps": 1,
    }
    guided |= {"true_cfg_scale": 2.0} if name == "flux" else {"guidance_scale": 3.0}
    vidattn.patch(pipe, pattern, min_tokens=0)
    for height, width, grid in SIZES[name]:
        sparse_calls.clear()
        got = run(name, pipe, height=height, width=width, **guided)
        assert (str(pattern), grid) in sparse_calls
        vidattn.unpatch(pipe)
        layouts = [TokenLayout(grid, text_before=TEXT if name == "flux" else 0)]
        if name == "sd":
            layouts.append(TokenLayout((1, -(-grid[1] // 2), -(-grid[2] // 2))))
        with planted_masks(pattern, layouts) as seen:
            expected = run(name, pipe, height=height, width=width, **guided)
        assert len(seen) == len(sparse_calls) > 0
        torch.testing.assert_close(got, expected, **rounding(expected))
        vidattn.patch(pipe, pattern, min_tokens=0)
