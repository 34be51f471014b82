"""What the tests of all mixers and models share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vidattn.backbones import create_model

TOLERANCE = 1e-6
State = dict[str, tuple[int, ...]]


def close(actual: Tensor, expected: Tensor, what: str) -> None:
    """Assert that the greatest difference is under a millionth of the greatest expected value."""
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)}, not {tuple(expected.shape)}"
    error, size = (actual - expected).abs().max().item(), expected.abs().max().item()
    assert size > 0, f"{what}: all of the reference is zero, so that it shows nothing"
    assert error <= TOLERANCE * size, f"{what}: relative error {error / size:.2e}"


def randomized(module: nn.Module, std: float = 0.3) -> nn.Module:
    """The module in float64, with lively parameters and statistics, so that none is without effect."""
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * std)
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(torch.randn_like(buffer) * 0.2)
            if name.endswith("running_var"):
                buffer.copy_(torch.rand_like(buffer) + 0.5)
    return module


def check_mixer(
    mixer: nn.Module, reference: Callable[..., Any], grid: tuple[int, ...], prefix: int = 0, batch: int = 2
) -> None:
    """Compare a mixer's output and all gradients with a plain-equation reference, in float64.

    ``reference(p, x)`` or ``reference(p, x, prefix)`` gets the mixer's parameters and buffers by name in
    ``p``. The mixer's parameters are randomized first.
    """
    randomized(mixer).eval()
    inputs = [torch.randn(batch, *grid, mixer.dim, dtype=torch.float64)]
    if prefix:
        inputs.append(torch.randn(batch, prefix, mixer.dim, dtype=torch.float64))
    found = _with_gradients(mixer, list(mixer.parameters()), inputs, mixer)
    state = dict(mixer.named_buffers()) | {
        n: p.detach().clone().requires_grad_() for n, p in mixer.named_parameters()
    }
    learned = [state[n] for n, _ in mixer.named_parameters()]
    expected = _with_gradients(mixer, learned, inputs, lambda *x: reference(state, *x))
    names = ["output", "prefix output"][: len(inputs)]
    names += [
        f"gradient of {n}"
        for n in (*("x", "prefix")[: len(inputs)], *(n for n, _ in mixer.named_parameters()))
    ]
    for name, got, wanted in zip(names, found, expected, strict=True):
        # a key's bias shifts all scores alike: its gradient is zero up to rounding on both sides
        if wanted.abs().max() < 1e-12:
            assert got.abs().max() < 1e-12, name
        else:
            close(got, wanted, name)


def _with_gradients(
    mixer: nn.Module, learned: list[Tensor], inputs: list[Tensor], call: Callable[..., Any]
) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() for x in inputs]
    out = call(*leaves)
    outs = list(out) if isinstance(out, tuple) else [out]
    weights = torch.Generator().manual_seed(7)
    loss = sum((o * torch.randn(o.shape, generator=weights, dtype=o.dtype)).sum() for o in outs)
    gradients = torch.autograd.grad(loss, [*leaves, *learned])
    return [*(o.detach() for o in outs), *gradients]


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, seen: Tensor | None = None) -> Tensor:
    """softmax(scale * q k^T) v by definition, (B, N, H, D); ``seen`` is a mask (N, M) or (H, N, M)."""
    scores = torch.einsum("bihd,bjhd->bhij", q, k) * scale
    if seen is not None:
        scores = scores.masked_fill(~seen, -math.inf)
    return torch.einsum("bhij,bjhe->bihe", scores.softmax(-1), v)


def shapes(model: nn.Module) -> State:
    """Shapes by key of a model's state dict, batch norms' counters left out."""
    return {k: tuple(v.shape) for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}


def linear(name: str, out: int, width: int, bias: bool = True) -> State:
    """State of a linear layer."""
    return {f"{name}.weight": (out, width)} | ({f"{name}.bias": (out,)} if bias else {})


def conv(name: str, out: int, width: int, kernel: int, bias: bool = True) -> State:
    """State of a convolution; ``width`` is input channels per group."""
    return {f"{name}.weight": (out, width, kernel, kernel)} | ({f"{name}.bias": (out,)} if bias else {})


def norm(name: str, width: int) -> State:
    """State of a layer norm."""
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def batch_norm(name: str, width: int) -> State:
    """State of a batch norm, its counter left out."""
    return norm(name, width) | {f"{name}.running_mean": (width,), f"{name}.running_var": (width,)}


def merged(parts: Iterator[State]) -> State:
    """All parts in one, no key twice."""
    state: State = {}
    for part in parts:
        assert not set(part) & set(state)
        state |= part
    return state


def on_meta(name: str, **options: Any) -> nn.Module:
    """A model without memory for its parameters."""
    with torch.device("meta"):
        return create_model(name, **options)
