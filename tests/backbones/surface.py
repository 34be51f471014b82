"""What every model has to do: timm's surface, training, checkpointing, compilation, loading."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vidattn.backbones import create_model
from vidattn.backbones.backbone import Backbone


def check_surface(name: str, tmp_path: Path, size: tuple[int, int] = (64, 96), **tiny: Any) -> None:
    """Build a small version of a model and put it through all conventions.

    Args:
        name: a registered model.
        tmp_path: for a file.
        size: of the image.
        **tiny: fields of the configuration that make it small.
    """
    model = create_model(name, num_classes=5, in_chans=2, **tiny)
    image = torch.randn(2, 2, *size)
    _check_forward(model, image)
    _check_intermediates(model, image)
    _check_training(create_model(name, num_classes=5, in_chans=2, drop_path_rate=0.2, **tiny), image)
    _check_compiles(model, image)
    _check_bfloat16(model, image)
    _check_groups(model)
    _check_loading(model, name, tmp_path, tiny, image)
    _check_reset(model, image)


def _check_forward(model: Backbone, image: Tensor) -> None:
    assert not model.training
    features = model.forward_features(image)
    pooled = model.forward_head(features, pre_logits=True)
    assert features.shape[-1] == model.num_features
    assert pooled.shape == (2, model.num_features)
    scores = model(image)
    assert scores.shape == (2, 5)
    assert torch.equal(scores, model.forward_head(features))
    assert torch.allclose(scores[:1], model(image[:1]), atol=1e-5)
    assert not torch.allclose(scores[0], scores[1], rtol=1e-4, atol=0)


def _check_intermediates(model: Backbone, image: Tensor) -> None:
    final, maps = model.forward_intermediates(image)
    assert torch.equal(final, model.forward_features(image))
    assert len(maps) == len(model.feature_info)
    for info, found in zip(model.feature_info, maps, strict=True):
        grid = [-(-n // info["reduction"]) for n in image.shape[2:]]
        assert found.shape == (2, info["num_chs"], *grid)
        assert model.get_submodule(info["module"]) is not None
    early = model.forward_intermediates(
        image, [0], stop_early=True, intermediates_only=True, output_fmt="NHWC"
    )
    assert torch.equal(early[0], maps[0].permute(0, 2, 3, 1))
    last = model.forward_intermediates(image, 1, intermediates_only=True)
    assert torch.equal(last[0], maps[-1])


def _check_training(model: Backbone, image: Tensor) -> None:
    model.train()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    gradients = []
    for checkpointing in (False, True):
        model.load_state_dict(state)
        model.set_grad_checkpointing(checkpointing)
        torch.manual_seed(1)
        model.zero_grad()
        model(image).square().sum().backward()
        assert all(p.grad is not None for p in model.parameters())
        assert any(p.grad.abs().sum() > 0 for p in model.parameters())
        gradients.append([p.grad.clone() for p in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.allclose(plain, recomputed, rtol=1e-4, atol=1e-6)


def _check_compiles(model: Backbone, image: Tensor) -> None:
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        assert torch.allclose(compiled(image), model(image), atol=1e-5)
    torch.compiler.reset()


def _check_bfloat16(model: Backbone, image: Tensor) -> None:
    with torch.no_grad():
        exact = model(image)
        half = model.bfloat16()(image.bfloat16())
    model.float()
    assert half.dtype == torch.bfloat16
    assert torch.isfinite(half).all()
    # sixteen rounding steps, of the size of the scores
    assert (half - exact).abs().max() <= 2**-4 * exact.abs().max()


def _check_groups(model: Backbone) -> None:
    names = {n for n, _ in model.named_parameters()}
    assert set(model.no_weight_decay()) <= names
    for coarse in (False, True):
        matcher = model.group_matcher(coarse=coarse)
        patterns = [matcher["stem"], *(p for p, _ in matcher["blocks"])]
        rest = {n for n in names if not any(re.match(p, n) for p in patterns)}
        allowed = (model.head_at, *model.neck_at) if coarse else (model.head_at,)
        assert all(n.startswith(allowed) for n in rest), rest


def _check_loading(model: Backbone, name: str, tmp_path: Path, tiny: dict[str, Any], image: Tensor) -> None:
    path = tmp_path / "model.safetensors"
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path)
    same = create_model(name, path, num_classes=5, in_chans=2, **tiny)
    assert torch.equal(same(image), model(image))
    other = create_model(name, path, num_classes=3, in_chans=2, **tiny)
    assert torch.equal(other.forward_features(image), model.forward_features(image))
    assert other(image).shape == (2, 3)


def _check_reset(model: Backbone, image: Tensor) -> None:
    assert isinstance(model.get_classifier(), nn.Module)
    model.reset_classifier(7)
    assert model(image).shape == (2, 7)
    model.reset_classifier(0, "max")
    # pooling leaves a class token out
    grid = model.forward_features(image).flatten(1, -2)[:, getattr(model, "num_prefix_tokens", 0) :]
    assert torch.equal(model(image), grid.amax(1))
