"""TokenLayout: counts, text positions, padding, and what it refuses."""

import pytest
import torch

from vidattn import TokenLayout


def test_counts_and_text_positions():
    layout = TokenLayout((2, 3, 4), text_before=2, text_after=3)
    assert (layout.grid_tokens, layout.text_tokens, layout.tokens) == (24, 5, 29)
    assert layout.text_index().tolist() == [0, 1, 26, 27, 28]


@pytest.mark.parametrize(("given", "grid"), [((5,), (1, 1, 5)), ((4, 5), (1, 4, 5)), ([2, 4, 5], (2, 4, 5))])
def test_short_grids_get_leading_ones(given, grid):
    assert TokenLayout(given).grid == grid


def test_padding_counts_through_both_text_runs():
    layout = TokenLayout((1, 1, 2), text_before=2, text_after=2, text_valid=(1, 3))
    assert layout.key_valid().int().tolist() == [[1, 0, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0]]


def test_one_count_serves_every_item_and_a_wrong_number_is_refused():
    layout = TokenLayout((1, 1, 2), text_before=4, text_valid=(3,))
    assert layout.text_valid_tensor(2, torch.device("cpu")).tolist() == [3, 3]
    with pytest.raises(ValueError, match="2 counts for a batch of 3"):
        TokenLayout((1, 1, 2), 4, text_valid=(3, 4)).text_valid_tensor(3, torch.device("cpu"))


def test_equality_and_hash():
    assert TokenLayout((1, 2, 3), 4) == TokenLayout((2, 3), 4)
    assert hash(TokenLayout((1, 2, 3), 4)) == hash(TokenLayout((2, 3), 4))
    assert TokenLayout((2, 3), 4, text_valid=(2,)) == TokenLayout((2, 3), 4, text_valid=torch.tensor([2]))
    assert TokenLayout((2, 3), 4, text_valid=(2,)) != TokenLayout((2, 3), 4)
    assert TokenLayout((2, 3), 4) != TokenLayout((2, 3), 0, 4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"grid": (0, 2, 2)}, r"grid=\(0, 2, 2\)"),
        ({"grid": 7}, "grid=7"),
        ({"grid": (1, 2, 3, 4)}, "grid="),
        ({"grid": (1, 2.0, 3)}, "grid="),
        ({"grid": (1, 2, 3), "text_before": -1}, "text_before=-1"),
        ({"grid": (1, 2, 3), "text_after": True}, "text_after=True"),
        ({"grid": (1, 2, 3), "text_before": 2, "text_valid": (3,)}, "only 2 text tokens"),
        ({"grid": (1, 2, 3), "text_before": 2, "text_valid": torch.ones(1)}, "integer tensor"),
    ],
)
def test_bad_layouts_name_the_argument(arguments, words):
    with pytest.raises(ValueError, match=words):
        TokenLayout(**arguments)
