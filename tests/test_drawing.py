"""What the drawings count, against the brute-force mask; and the colours that end up in the picture."""

import numpy as np
import pytest
import torch

from vidattn import TokenLayout
from vidattn.drawing import colors, draw_pattern, figures_of
from vidattn.drawing.examples import example_visits, whole_mask
from vidattn.drawing.frames import FrameView
from vidattn.drawing.numbers import matrix, number_of, sees, tile_of, tokens_of
from vidattn.patterns import from_text

CASES = [
    ("neighborhood:window=5x7", (1, 12, 13), 3),
    ("neighborhood:window=3x3,dilation=3", (1, 12, 13), 0),
    ("disc:radius=4", (1, 12, 13), 3),
    ("radial:decay=0.5", (5, 4, 6), 0),
    ("groups:size=2x3x3,region=cross", (4, 7, 8), 5),
    ("hierarchical:parts=2x3x3,branches=remote", (4, 7, 8), 5),
]


@pytest.mark.parametrize(("text", "grid", "words"), CASES)
def test_counts_agree_with_the_mask(text: str, grid: tuple[int, int, int], words: int):
    pattern, layout = from_text(text), TokenLayout(grid=grid, text_before=words)
    mask = pattern.mask(layout)
    grid_mask = mask[words:, words:]
    figures = figures_of(pattern, layout)
    assert figures.density == pytest.approx(mask.double().mean().item())
    assert figures.grid_density == pytest.approx(grid_mask.double().mean().item())
    assert torch.equal(sees(pattern, layout.grid, torch.arange(layout.grid_tokens)), grid_mask)

    plan = pattern.plan(layout)
    visited = sum(
        len(tokens_of(tile, plan)) * sum(len(tokens_of(b, plan)) for b in tile.boxes) for tile in plan.tiles
    )
    assert figures.visited_ratio == pytest.approx(visited / grid_mask.sum().item())
    assert (figures.tiles, figures.boxes) == (len(plan.tiles), sum(len(tile.boxes) for tile in plan.tiles))

    share, exact = matrix(pattern, layout, layout.tokens)  # a pixel for each pair
    assert exact
    assert np.array_equal(share, mask.double().numpy())
    coarse, _ = matrix(pattern, layout, 7)
    assert coarse.shape == (7, 7)
    assert np.abs(coarse.mean() - mask.double().mean().item()) < 0.05


@pytest.mark.parametrize(("text", "grid", "words"), CASES)
def test_a_querys_tile_holds_it_and_visits_all_it_sees(text: str, grid: tuple[int, int, int], words: int):
    pattern, layout = from_text(text), TokenLayout(grid=grid)
    plan, query = pattern.plan(layout), number_of((grid[0] - 1, 3, 4 % grid[2]), grid)
    tile = tile_of(plan, query)
    assert query in tokens_of(tile, plan)
    visited = torch.cat([tokens_of(box, plan) for box in tile.boxes])
    seen = sees(pattern, grid, torch.tensor([query]))[0].nonzero().flatten()
    assert set(seen.tolist()) <= set(visited.tolist())


EXAMPLES = [
    ("topk:keep=0.3,tile=2x3x3", (4, 7, 8), 5),
    ("svg:width=0.7", (5, 4, 6), 3),
    ("segments:lengths=3x2x1x3,allowed=1010x0101x1011x0101", (4, 4, 6), 5),
]


@pytest.mark.parametrize(("text", "grid", "words"), EXAMPLES)
def test_patterns_without_a_plan_are_counted_as_they_run(text: str, grid: tuple[int, int, int], words: int):
    pattern, layout = from_text(text), TokenLayout(grid, text_before=words)
    mask = whole_mask(pattern, layout)
    figures = figures_of(pattern, layout)
    assert figures.density == mask.double().mean().item() <= pattern.density(layout) + 1e-12
    visits = example_visits(pattern, layout)
    assert torch.cat([queries for queries, _ in visits]).sort().values.tolist() == list(
        range(layout.grid_tokens)
    )
    seen = mask[words:, words:]
    for queries, boxes in visits:
        keys = torch.cat([keys for keys, _ in boxes])
        assert len(keys.unique()) == len(keys)
        rows = seen[queries]
        assert rows.sum() == rows[:, keys].sum()  # all that is seen is visited
        assert all(rows[:, box].all() for box, full in boxes if full)
    assert (figures.tiles, figures.boxes) == (len(visits), sum(len(boxes) for _, boxes in visits))
    image = draw_pattern(pattern, layout)
    assert share_of(image, colors.SEEN) > 0.0005
    assert share_of(image, colors.QUERY) > 0.0005


def test_what_cannot_be_drawn():
    with pytest.raises(ValueError, match="is drawn by branch: branches=close"):
        draw_pattern(from_text("hierarchical:branches=close+remote"), TokenLayout((1, 8, 8)))
    with pytest.raises(ValueError, match="at most 8,192 tokens"):
        figures_of(from_text("topk"), TokenLayout((1, 100, 100)))


def share_of(image, color: colors.Color) -> float:
    return float((np.asarray(image) == np.array(color)).all(-1).mean())


def test_the_picture_shows_the_colours_of_what_it_counts():
    image = draw_pattern(from_text("neighborhood:window=9x9"), TokenLayout((1, 32, 32), text_before=16))
    for color in (colors.SEEN, colors.QUERY, colors.UNSEEN, colors.TEXT):
        assert share_of(image, color) > 0.0005
    groups = draw_pattern(from_text("groups:size=8x8"), TokenLayout((1, 32, 32)))
    assert share_of(groups, colors.FULL) > 0.01  # GRAT's boxes are all full
    assert share_of(groups, colors.PARTIAL) == 0


def test_more_window_draws_more_colour():
    layout = TokenLayout((1, 32, 32))
    small, large = (draw_pattern(from_text(f"neighborhood:window={w}x{w}"), layout) for w in (5, 15))
    assert share_of(large, colors.SEEN) > 2 * share_of(small, colors.SEEN)


@pytest.mark.parametrize(
    ("grid", "shown", "skip"),
    [((1, 10, 12), 1, 1), ((9, 8, 8), 9, 1), ((40, 8, 8), 15, 1), ((1, 600, 900), 1, 3)],
)
def test_frames_fit_the_sheet(grid: tuple[int, int, int], shown: int, skip: int):
    view = FrameView(grid, frame=grid[0] // 2)
    image = view.draw(np.zeros((*grid, 3), dtype=np.uint8))
    assert len(view.shown) == shown
    assert grid[0] // 2 in view.shown
    assert view.skip == skip
    assert image.width <= 460


def test_large_grids_are_sampled():
    pattern, layout = from_text("neighborhood:window=17x17"), TokenLayout((1, 128, 128))
    share, exact = matrix(pattern, layout, 128)
    assert not exact
    assert share.mean() == pytest.approx(pattern.density(layout), rel=0.01)


def test_a_query_outside_the_grid():
    with pytest.raises(ValueError, match=r"query=\(0, 4, 9\) lies outside the grid \(1, 8, 8\)"):
        draw_pattern(from_text("full"), TokenLayout((1, 8, 8)), (0, 4, 9))
