"""Block lists against their definition."""

import torch

from vidattn.lists import BlockLists, box_counts, box_numbers


def test_boxes_are_numbered_in_raster_order_and_cut_at_the_ends():
    assert box_counts((3, 5, 4), (2, 2, 3)) == (2, 3, 2)
    numbers = box_numbers((1, 3, 4), (1, 2, 3)).view(3, 4)
    assert numbers.tolist() == [[0, 0, 0, 1], [0, 0, 0, 1], [2, 2, 2, 3]]


def test_entries_behind_the_count_are_not_read():
    grid, tile = (1, 4, 4), (1, 2, 2)
    index = torch.tensor([[[[0, 3], [1, 99], [2, 0], [-7, 99]]]], dtype=torch.int32)
    count = torch.tensor([[[2, 1, 2, 0]]], dtype=torch.int32)
    lists = BlockLists(grid, tile, tile, index, count)
    table = lists.visits()[0, 0]
    assert table.tolist() == [
        [True, False, False, True],
        [False, True, False, False],
        [True, False, True, False],
        [False, False, False, False],
    ]
    rows = box_numbers(grid, tile)
    expected = table[rows[:, None], rows[None, :]]
    assert torch.equal(lists.mask()[0, 0], expected)
