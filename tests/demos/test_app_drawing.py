"""The app's controls and drawings of patterns."""

import numpy as np
import pytest
import torch

from demos.gui import controls, prediction, preview
from vidattn import TokenLayout
from vidattn.backends.cost import Times
from vidattn.cli import full_size
from vidattn.drawing import colors
from vidattn.patterns import PATTERNS, Disc, Neighborhood, from_text
from vidattn.patterns.dynamic import DynamicPattern

STILL, CLIP = (1, 20, 24), (5, 12, 16)


@pytest.mark.parametrize("moving", [False, True], ids=["still", "clip"])
def test_every_pattern_has_controls_that_make_it(moving: bool):
    names = controls.pattern_names(moving)
    assert {"neighborhood", "sliding", "disc", "groups", "topk", "hierarchical"} <= set(names)
    assert ("radial" in names) == moving
    assert "perhead" not in names  # a list of patterns is nothing for a slider
    grid = CLIP if moving else STILL
    for name in names:
        pattern = controls.pattern_of(name, moving, {})
        assert pattern.name == name
        again = controls.pattern_of(name, moving, controls.values_of(pattern, moving, grid))
        assert again == pattern
        for control in controls.controls_of(name, moving):
            assert control.kind in ("slider", "tick", "choice")
            if control.kind == "slider":
                low, high, _ = control.bounds
                assert low <= control.start <= high


def test_controls_set_what_they_are_named_after():
    values = {("window", 1): 5.0, ("window", 2): 9, ("stride", None): 2, ("causal", None): True}
    assert controls.pattern_of("neighborhood", False, values) == Neighborhood((5, 9), stride=2, causal=True)
    assert controls.pattern_of("disc", False, {("radius", None): 2.5}) == Disc(2.5)
    with pytest.raises(ValueError, match="unknown pattern 'radial'"):
        controls.pattern_of("radial", False, {})
    with pytest.raises(ValueError, match="larger than window"):
        controls.pattern_of("neighborhood", False, {("window", 1): 3, ("stride", None): 5})


@pytest.mark.parametrize(("moving", "grid"), [(False, STILL), (True, CLIP)], ids=["still", "clip"])
def test_presets_move_the_controls_to_the_same_mask(moving: bool, grid: tuple[int, int, int]):
    for name in controls.preset_names(moving):
        pattern = controls.preset_pattern(name, moving, grid, (8, 10))
        set_so = controls.pattern_of(pattern.name, moving, controls.values_of(pattern, moving, grid))
        if isinstance(pattern, DynamicPattern):  # whose mask depends on the data
            assert set_so == pattern
            continue
        layout = TokenLayout(grid)
        assert torch.equal(set_so.mask(layout), pattern.mask(layout)), name
    with pytest.raises(ValueError, match="unknown preset 'emoji'"):
        controls.preset_pattern("emoji", moving, grid, (8, 10))


@pytest.mark.parametrize(
    ("text", "grid"),
    [("neighborhood:window=5x7", STILL), ("radial:decay=0.5", CLIP), ("disc:radius=3", CLIP)],
)
def test_the_drawing_shows_the_mask_and_clicks_find_the_token(text: str, grid: tuple[int, int, int]):
    pattern, layout = from_text(text), TokenLayout(grid)
    mask = pattern.mask(layout)
    query = (grid[0] - 1, 3, grid[2] - 2)
    row = mask[(query[0] * grid[1] + query[1]) * grid[2] + query[2]].view(grid)
    drawn = preview.draw(pattern, grid, query)
    pixels = np.asarray(drawn.image)
    found = np.zeros(grid, dtype=bool)
    for y in range(2, drawn.image.height):
        for x in range(2, drawn.image.width):
            place = preview.query_at((x, y), grid, query)
            if tuple(pixels[y, x]) in (colors.SEEN, colors.QUERY):
                assert row[place]
                found[place] = True
            if tuple(pixels[y, x]) == colors.QUERY:
                assert place == query
    assert np.array_equal(found, row.numpy())
    assert f"{mask.double().mean():.1%} of all pairs are seen" in " ".join(drawn.facts)
    assert any(
        meaning.endswith(f"{int(row.sum()):,} of {layout.grid_tokens:,}") for _, meaning in drawn.legend
    )


def test_queries_outside_are_moved_onto_the_grid():
    assert preview.on_grid(None, (1, 8, 10)) == (0, 4, 5)
    assert preview.on_grid((3, 99, -1), (1, 8, 10)) == (0, 7, 0)
    assert preview.draw(Disc(2), (1, 8, 8), (0, 50, 50), preview.VIEWS[1]).legend[0][0] == "#d6392e"
    chosen = preview.draw(controls.pattern_of("topk", False, {}), (1, 8, 8))
    assert any("chosen from the data" in fact for fact in chosen.facts)
    with pytest.raises(ValueError, match="too many to draw"):
        preview.draw(Disc(2), (1, 256, 256))


def test_predicted_times_follow_the_pattern():
    denoiser, device = full_size.find("emoji-flux"), torch.device("cpu")

    def seconds(pattern: object, side: int) -> tuple[float, float]:
        return prediction.step_seconds(denoiser, pattern, (side, side), 1, device, torch.float32)

    dense, small = seconds(Neighborhood(9), 1024)
    assert small < dense / 4
    assert seconds(Neighborhood(9), 512)[0] < dense
    assert seconds(PATTERNS["full"](), 512)[0] == seconds(PATTERNS["full"](), 512)[1]
    said = prediction.sentences((dense, small), device)
    assert len(said) == 1
    assert Times.on(device).device in said[0]
    assert "dense is as fast here" in prediction.sentences((1.0, 1.0), device)[1]
    assert prediction.sentences(None, device) == []
