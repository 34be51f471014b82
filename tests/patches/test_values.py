"""What families learn from the values of tensors."""

from __future__ import annotations

import gc

import torch
from torch import Tensor

from vidattn import TokenLayout
from vidattn.patches.values import once_per_tensor, padded

AFTER = TokenLayout((2, 3), text_after=4)


def mask(*lengths: int, total: int = 4) -> Tensor:
    return (torch.arange(total) < torch.tensor(lengths)[:, None]).long()


def test_trailing_zeros_are_padding_whatever_the_type_and_shape():
    given = mask(3, 1)
    for form in (given, given.bool(), given.float(), given[:, None, None]):
        layout, reason = padded(AFTER, form)
        assert reason == ""
        assert layout.text_valid.tolist() == [3, 1]
    before = padded(TokenLayout((2, 3), text_before=4), given)[0]
    assert before.text_before == 4
    assert before.text_valid.tolist() == [3, 1]


def test_masks_without_zeros_and_no_masks_leave_the_layout_as_it_is():
    for given in (None, mask(4, 4)):
        assert padded(AFTER, given) == (AFTER, "")


def test_what_is_no_trailing_padding_is_refused_with_a_reason():
    both = TokenLayout((2, 3), text_before=4, text_after=2)
    assert padded(both, mask(4, 4)) == (both, "")
    for layout, given, why in (
        (AFTER, mask(3, 1).flip(1), "hides tokens in front of others"),
        (AFTER, torch.tensor([[1, 0, 1, 0]]), "hides tokens in front of others"),
        (AFTER, mask(3, total=5), r"of shape (1, 5) for 4 text tokens"),
        (AFTER, mask(3)[0], "of shape (4,) for 4"),
        (both, mask(4, 3), "no padding stand behind the grid"),
        (AFTER, mask(3).to("meta"), "meta device"),
    ):
        same, reason = padded(layout, given)
        assert same is layout
        assert why in reason


def test_values_are_read_once_per_tensor_until_it_is_written_to():
    reads = []

    @once_per_tensor
    def total(tensor: Tensor) -> int:
        reads.append(None)
        return int(tensor.sum())

    first = torch.ones(3)
    assert [total(first), total(first), len(reads)] == [3, 3, 1]
    first[0] = 5
    assert [total(first), len(reads)] == [7, 2]
    for _ in range(3):  # other tensors in the same place in memory are other tensors
        other = torch.full((3,), 2.0)
        assert total(other) == 6
        other.zero_()
        del other
        gc.collect()
    with torch.inference_mode():
        assert total(torch.ones(2)) == 2
