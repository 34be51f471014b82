"""Segments against plain readings of ShotAdapter and DRA-Ctrl, and against masked attention."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.patterns.exact import assert_exact, tensors
from tests.strategies import segments
from vidattn import TokenLayout, attention
from vidattn.patterns import PerHead, Segments, Spatial, from_dict, from_text


def test_shots_are_shotadapters_mask():
    """Frames see all frames, a shot's text and frames each other, a transition the two frames at its cut."""
    frames, text, places = (3, 1, 2), (2, 3, 1), 4
    layout = TokenLayout((6, 2, 2), text_after=sum(text) + 2)
    shot_of = [s for s, n in enumerate(frames) for _ in range(n)]
    cuts = [{2, 3}, {3, 4}]  # the frames at each of them
    tokens = [("frame", f) for f in range(6) for _ in range(places)]
    tokens += [("text", s) for s, n in enumerate(text) for _ in range(n)] + [("cut", 0), ("cut", 1)]

    def sees(a, b):
        (kind, i), (other, j) = sorted((a, b), key=lambda token: ["frame", "text", "cut"].index(token[0]))
        if kind == other:
            return kind == "frame" or i == j
        if kind == "text":
            return False
        return shot_of[i] == j if other == "text" else i in cuts[j]

    expected = torch.tensor([[sees(a, b) for b in tokens] for a in tokens])
    pattern = Segments.shots(frames, text)
    assert torch.equal(pattern.mask(layout), expected)
    # the same table serves another size, and shots without transition tokens are the same but for those
    assert torch.equal(pattern.mask(TokenLayout((6, 1, 3), text_after=8))[18:, 18:], expected[24:, 24:])
    bare = Segments.shots(frames, text, transitions=False).mask(TokenLayout((6, 2, 2), text_after=6))
    assert torch.equal(bare, expected[:-2, :-2])


def test_control_is_dra_ctrls_table():
    layout = TokenLayout((4, 2, 3), text_after=5 + 2)
    names = ["condition"] * 6 + ["generated"] * 18 + ["text"] * 5 + ["condition text"] * 2
    sees = {
        "condition": {"condition", "condition text"},
        "generated": {"condition", "generated", "text"},
        "text": {"generated", "text"},
        "condition text": {"condition", "condition text"},
    }
    expected = torch.tensor([[b in sees[a] for b in names] for a in names])
    assert torch.equal(Segments.control(2, 5).mask(layout), expected)
    short = TokenLayout((4, 2, 3), text_after=5)
    assert torch.equal(Segments.control(0, 5).mask(short), expected[:-2, :-2])


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_segments_equal_masked_attention(data):
    grid = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 4)))
    before, after = data.draw(st.integers(0, 4)), data.draw(st.integers(0, 4))
    layout = TokenLayout(grid, before, after)
    pattern = data.draw(segments(layout))
    assert from_text(pattern.to_text()) == from_dict(pattern.to_dict()) == pattern
    mask = pattern.mask(layout)
    assert pattern.density(layout) == pytest.approx(mask.double().mean().item(), abs=1e-12)
    assert pattern.covers(grid) == mask.all().item()
    assert_exact(pattern, layout, tensors(layout), mask, backends=("auto", "torch", "dense"))


def test_padded_text_is_hidden_and_scales_may_differ_by_head():
    layout = TokenLayout((4, 2, 3), 2, 5, text_valid=(7, 3))
    pattern = Segments((2, 1, 3, 5), ("1101", "1100", "0111", "1011"))
    mask = pattern.mask(layout)
    assert mask.shape == (2, 31, 31)
    assert not mask[1, :, 27:].any()
    assert pattern.density(layout) == pytest.approx(mask.double().mean().item(), abs=1e-12)
    scale = torch.tensor([0.1, 0.7, 0.3, 0.2], dtype=torch.float64).requires_grad_()
    assert_exact(pattern, layout, tensors(layout), mask, scale=scale, backends=("auto", "torch"))


def test_segments_of_some_heads():
    layout = TokenLayout((3, 2, 2), text_after=2)
    pattern = PerHead([Segments((1, 2, 2), ("101", "010", "011")), Spatial(0.5)], (1, 0, 0, 1))
    assert_exact(pattern, layout, tensors(layout), pattern.mask(layout)[None])


@pytest.mark.parametrize(
    ("lengths", "allowed", "words"),
    [
        ((), (), r"lengths=\(\)"),
        ((2, 0), ("11", "11"), "lengths="),
        ((2, 2), ("11",), "2 rows of 2"),
        ((2, 2), ("11", "12"), "zeros and ones"),
        ((2, 2), ("11", "00"), "must see at least one"),
    ],
)
def test_bad_tables(lengths, allowed, words):
    with pytest.raises(ValueError, match=words):
        Segments(lengths, allowed)


def test_lengths_that_do_not_fit():
    pattern = Segments((2, 2), ("10", "11"))
    with pytest.raises(ValueError, match="add up to 4: must be the layout's 13 tokens, or 2 with"):
        pattern.mask(TokenLayout((4, 3), text_after=1))
    with pytest.raises(ValueError, match="crosses the grid's border"):
        pattern.mask(TokenLayout((3, 3, 1), text_before=1))
    with pytest.raises(ValueError, match="have no plan"):
        pattern.plan(TokenLayout((4, 1)))
    with pytest.raises(ValueError, match="1 shots and text 2"):
        Segments.shots((3,), (2, 2))
    layout = TokenLayout((2, 2))
    x = torch.zeros(1, 4, 1, 8)
    with pytest.raises(ValueError, match="backend='tritan'"):
        attention(x, x, x, pattern, layout, backend="tritan")
