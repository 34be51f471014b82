"""When dense attention is taken although a pattern was asked for, and which backend runs."""

import pytest
import torch

from vidattn import TokenLayout, backends
from vidattn.backends.pays import MAX_VISITED, why_dense
from vidattn.patterns import Full, Neighborhood, PerHead

CPU = torch.device("cpu")


def test_few_tokens_run_dense():
    assert why_dense(Neighborhood(3), TokenLayout((31, 33)), CPU) == "1023 tokens, under min_tokens 1024"
    assert why_dense(Neighborhood(3), TokenLayout((32, 32)), CPU) == ""


def test_the_pairs_that_the_plan_visits_decide():
    layout = TokenLayout((64, 64))
    for window in (9, 17, 25, 33, 45):
        pattern = Neighborhood(window)
        visited = pattern.plan(layout).visited_pairs / 4096**2
        assert pattern.visited(layout) == visited
        reason = why_dense(pattern, layout, CPU)
        assert (reason == "") == (visited <= MAX_VISITED["cpu"])
        assert not reason or f"{visited:.2f} of the pairs" in reason
    assert why_dense(Neighborhood(17), layout, torch.device("cuda"))


def test_heads_count_by_their_share():
    layout = TokenLayout((32, 32))
    pattern = PerHead([Neighborhood(3), Full()], (0, 0, 0, 1))
    assert pattern.visited(layout) == pytest.approx(0.75 * Neighborhood(3).visited(layout) + 0.25)


def test_resolve_names_a_backend_and_a_reason():
    layout = TokenLayout((8, 8))
    assert backends.resolve("auto", Neighborhood(3), layout)[0] == "torch"
    assert backends.resolve("auto", Neighborhood(8), layout) == ("dense", "every query sees every key")
    assert backends.resolve("dense", Neighborhood(3), layout) == ("dense", "asked for")
    with pytest.raises(ValueError, match="did you mean 'torch'"):
        backends.resolve("touch", Neighborhood(3), layout)
