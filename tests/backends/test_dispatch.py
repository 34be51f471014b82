"""The table of backends: explicit choices never fall back, and "auto" says why."""

import pytest
import torch

from tests.kernels.cases import Case, tiny_tiles
from vidattn import TokenLayout, attention, backends, na2d
from vidattn.backends import triton
from vidattn.backends.problem import Problem
from vidattn.ops import attention_op
from vidattn.patterns import Neighborhood

CPU = torch.device("cpu")
interpreted = pytest.mark.skipif(bool(triton.missing(CPU)), reason="needs TRITON_INTERPRET=1")


def test_a_named_backend_that_cannot_run_says_why():
    query = torch.zeros(1, 16, 2, 512, dtype=torch.float64)
    with pytest.raises(
        NotImplementedError, match=r"backend='triton' cannot run this call: .*float64"
    ) as error:
        attention(query, query, query, Neighborhood(3), TokenLayout((4, 4)), backend="triton")
    assert "head_dim 512 is over 256" in str(error.value)


def test_auto_takes_no_interpreted_kernel_on_a_cpu():
    query = torch.zeros(1, 16, 2, 16)
    problem = Problem(Neighborhood(3), TokenLayout((4, 4)), 1.0)
    assert backends.pick("auto", problem, query, query, query)[0].name == "torch"
    assert backends.resolve("auto", Neighborhood(3), TokenLayout((4, 4)))[0] == "torch"


def test_auto_on_a_gpu(monkeypatch):
    fake = type("Query", (), {"device": torch.device("cuda", 0)})()
    problem = Problem(Neighborhood(3), TokenLayout((4, 4)), 1.0)
    why = ["needs compute capability 8.0, the device has 7.5"]
    for found, name in (([], "triton"), (why, "torch")):
        entry = backends.Backend("triton", "", triton.forward, reasons=lambda *_, found=found: found)
        monkeypatch.setitem(backends.BACKENDS, "triton", entry)
        chosen, reason = backends.pick("auto", problem, fake, fake, fake)
        assert chosen.name == name
        assert not found or found[0] in reason


def test_devices_that_the_kernels_refuse():
    assert "needs a GPU" in triton.missing(torch.device("mps"))[0]
    for name, reasons in backends.reasons("cpu").items():
        assert all(isinstance(reason, str) for reason in reasons), name


@interpreted
def test_additional_keys_of_na2d():
    make = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 1, 4, 5, 1, 16, generator=make)
    more = torch.randn(1, 3, 1, 16, generator=make)
    with tiny_tiles():
        got, want = (
            na2d(query, key, value, 3, additional_keys=more, additional_values=-more, backend=name)
            for name in ("triton", "torch")
        )
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


@interpreted
def test_opcheck():
    case = Case(Neighborhood(3), (1, 4, 5), 2, heads=1)
    options = (case.pattern.encoded, case.grid, (2, 0), (), 0.3, "triton")
    with tiny_tiles():
        torch.library.opcheck(attention_op, (*case.inputs(), *(None,) * 4, *options))


@interpreted
def test_one_graph_for_all_sizes_and_prompts():
    graphs = []

    def count(module, _):
        graphs.append(module)
        return module.forward

    def model(image, text):
        size = image.shape[1:3]
        tokens = torch.cat([text, image.flatten(1, 2)], 1)
        layout = TokenLayout((1, *size), text.shape[1])
        return attention(tokens, tokens, tokens, Neighborhood(3), layout, backend="triton")

    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=count)
    with tiny_tiles():
        for height, width, text in ((4, 5, 3), (5, 4, 2)):
            inputs = torch.randn(1, height, width, 1, 16), torch.randn(1, text, 1, 16)
            torch.testing.assert_close(compiled(*inputs), model(*inputs))
    assert len(graphs) == 1
