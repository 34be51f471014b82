"""The small calls that come before "auto" relies on the kernels."""

import pytest
import torch

from vidattn import backends
from vidattn.backends import trial, triton
from vidattn.backends.problem import Problem
from vidattn.layout import TokenLayout
from vidattn.patterns import Neighborhood

interpreted = pytest.mark.skipif(
    bool(triton.missing(torch.device("cpu"))), reason="needs Triton's interpreter on the CPU"
)


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    """No results from other tests; calls that are small enough for the interpreter."""
    calls = [
        Problem(call.pattern, TokenLayout((1, 5, 6), text_before=min(call.layout.text_before, 3)), call.scale)
        for call in trial._CALLS
    ]
    monkeypatch.setattr(trial, "_CALLS", (Problem(Neighborhood(3), calls[0].layout, 0.3), calls[1]))
    trial.compare.cache_clear()
    yield
    trial.compare.cache_clear()


def tensors(dtype=torch.float32):
    return torch.empty(1, 4, 1, 16, dtype=dtype), torch.empty(1, 4, 1, 32, dtype=dtype)


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_right_kernels_raise_no_doubts(dtype):
    with torch.autocast("cpu"):  # the callers' autocast must not blur the comparison
        assert trial.doubts(*tensors(dtype), backward=True) == []


@interpreted
def test_wrong_and_failing_kernels_raise_doubts(monkeypatch):
    forward, backward = triton.forward, triton.backward

    def slightly_wrong(problem, query, key, value):
        out, lse = forward(problem, query, key, value)
        out[0, -1, 0, 0] += 1e-3
        return out, lse

    def without_number(problem, saved, slope, other):
        grads = backward(problem, saved, slope, other)
        grads[1][0, 0, 0, 0] = float("nan")
        return grads

    def refused(*inputs):
        raise RuntimeError("out of resource: shared memory\nmore")

    monkeypatch.setattr(triton, "forward", slightly_wrong)
    (doubt,) = trial.doubts(*tensors())
    assert "neighborhood" in doubt
    assert "output" in doubt
    trial.compare.cache_clear()
    monkeypatch.setattr(triton, "forward", forward)
    monkeypatch.setattr(triton, "backward", without_number)
    (doubt,) = trial.doubts(*tensors(), backward=True)
    assert "the gradient of key" in doubt
    assert trial.doubts(*tensors()) == []
    trial.compare.cache_clear()
    monkeypatch.setattr(triton, "forward", refused)
    (doubt,) = trial.doubts(*tensors())
    assert "RuntimeError: out of resource: shared memory" in doubt
    assert "more" not in doubt


def test_auto_passes_a_doubted_backend_over_and_says_why(monkeypatch):
    fake = type("Query", (), {"device": torch.device("cuda", 0)})()
    problem = Problem(Neighborhood(3), TokenLayout((4, 4)), 1.0)
    asked = []

    def doubts(query, value, backward):
        asked.append(backward)
        return ["a small call differs"] if backward else []

    entry = backends.Backend("triton", "", triton.forward, doubts=doubts)
    monkeypatch.setitem(backends.BACKENDS, "triton", entry)
    assert backends.pick("auto", problem, fake, fake, fake)[0].name == "triton"
    chosen, why = backends.pick("auto", problem, fake, fake, fake, backward=True)
    assert chosen.name == "torch"
    assert "a small call differs" in why
    assert asked == [False, True]
    # what is asked for by name is not second-guessed
    assert backends.pick("triton", problem, fake, fake, fake, backward=True)[0].name == "triton"
