"""The small call that comes before backend "auto" relies on the kernels of linear attention."""

import pytest
import torch

from vidattn.linear import functional, trial

query, value = torch.empty(1, 4, 1, 16), torch.empty(1, 4, 1, 32)
pytestmark = pytest.mark.skipif(
    bool(functional.triton_reasons(query, value)), reason="needs Triton's interpreter on the CPU"
)


@pytest.fixture(autouse=True)
def _fresh():
    trial.compare.cache_clear()
    yield
    trial.compare.cache_clear()


@pytest.mark.parametrize("feature_map", sorted(functional.FEATURE_MAPS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_right_kernels_are_not_doubted(dtype, feature_map):
    with torch.autocast("cpu"):  # the callers' autocast must not blur the comparison
        assert trial.doubted(query.to(dtype), value.to(dtype), feature_map) == ""


def test_wrong_kernels_are_doubted(monkeypatch):
    from vidattn.kernels import linear

    true = linear.backward

    def without_tail(slope, *rest):
        grads = true(slope, *rest)
        grads[2][:, -1] = 0
        return grads

    monkeypatch.setattr(linear, "backward", without_tail)
    assert "the gradient of value" in trial.doubted(query, value, "elu1")


def test_auto_goes_by_it_and_a_name_does_not(monkeypatch):
    from vidattn.kernels import linear
    from vidattn.linear import chunks

    fake = type("Query", (), {"device": torch.device("cuda", 0)})()
    monkeypatch.setattr(functional, "triton_reasons", lambda query, value: [])
    monkeypatch.setattr(functional, "doubted", lambda query, value, name: "it differs")
    assert functional._implementation("auto", fake, fake, "elu1") is chunks
    assert functional._implementation("triton", fake, fake, "elu1") is linear
    monkeypatch.setattr(functional, "doubted", lambda query, value, name: "")
    assert functional._implementation("auto", fake, fake, "elu1") is linear
