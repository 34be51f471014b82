"""Observing attention changes nothing, and sees what the layers compute with."""

import pytest
import torch

from tests.patches import tiny_pipelines
from vidattn.patches.api import patch, unpatch
from vidattn.patches.model_patch import patch_of
from vidattn.patches.observe import observed


@pytest.mark.parametrize("name", tiny_pipelines.NAMES)
def test_every_layer_is_seen_and_the_output_is_the_same(name: str):
    model, inputs = tiny_pipelines.denoiser(name), tiny_pipelines.inputs(name)
    seen = []
    with torch.no_grad():
        plain = model(**inputs)[0]
        with observed(model, lambda layer, q, k, layout, scale: seen.append((layer, q, k, layout))):
            watched = model(**inputs)[0]
        after = model(**inputs)[0]
    assert torch.equal(plain, watched)
    assert torch.equal(plain, after)
    handle = patch(model, "full")
    planned = {layer for _, layer, _ in handle.report().planned}
    unpatch(model)
    assert {layer for layer, *_ in seen} == planned
    for _, query, key, layout in seen:
        assert query.shape[1] == key.shape[1] == layout.tokens


def test_a_patch_that_was_on_is_on_again():
    model = tiny_pipelines.denoiser("flux")
    patch(model, "neighborhood:window=3", min_tokens=0)
    before = patch_of(model)
    with pytest.raises(RuntimeError, match="enough"), observed(model, _fail):
        model(**tiny_pipelines.inputs("flux"))
    assert patch_of(model) is before


def _fail(*_: object) -> None:
    raise RuntimeError("enough")
