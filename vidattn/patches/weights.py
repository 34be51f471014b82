"""Trained weights that come with a pattern: read from safetensors, put into a model, and taken out again."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from torch import Tensor, nn


class SwappedWeights:
    """Tensors that replace a model's own until :meth:`restore`.

    Only references are exchanged: the model's own tensors are kept as they are, and come back bit for bit.
    """

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors
        self._own: dict[str, Tensor] = {}

    def apply(self, model: nn.Module) -> None:
        """Put the tensors in, in the dtype and on the device of those that they replace."""
        own = dict(model.named_parameters()) | dict(model.named_buffers())
        for name, tensor in self.tensors.items():
            self._own[name] = own[name].data
            own[name].data = tensor.to(device=own[name].device, dtype=own[name].dtype)
        self.tensors = {}

    def restore(self, model: nn.Module) -> None:
        """Put the model's own tensors back, wherever it is by now; ``apply`` can exchange them again."""
        now = dict(model.named_parameters()) | dict(model.named_buffers())
        for name, tensor in self._own.items():
            # PEFT renames the parameters of a layer that it wraps, and back when it is taken off
            names = (name, wrapped_name(name), name.replace(".base_layer.", "."))
            target = next(now[n] for n in names if n in now)
            self.tensors[name] = target.data
            target.data = tensor.to(device=target.device, dtype=target.dtype)
        self._own = {}


def wrapped_name(name: str) -> str:
    """The name of a parameter once PEFT has wrapped its layer."""
    head, _, tail = name.rpartition(".")
    return f"{head}.base_layer.{tail}"


def read_weights(path: Any, model: nn.Module) -> SwappedWeights:
    """The tensors of a safetensors file, checked against the model. The model is not changed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no safetensors file, holds tensors that the model does not have or that are of
            another shape there, or the model is in a state in which they would not be used.
    """
    file = Path(path)
    if file.suffix != ".safetensors":
        raise ValueError(
            f"weights={str(path)!r}: only .safetensors files are read; pickled files can run code when opened"
        )
    if not file.is_file():
        raise FileNotFoundError(f"weights={str(path)!r}: there is no such file")
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), framework="pt") as opened:
            shapes = {key: tuple(opened.get_slice(key).get_shape()) for key in opened.keys()}  # noqa: SIM118
            names = _matched(shapes, model, file.name)
            return SwappedWeights({names[key]: opened.get_tensor(key) for key in shapes})
    except (SafetensorError, OSError) as error:
        raise ValueError(f"weights={str(path)!r}: not readable as safetensors ({error})") from error


def _matched(shapes: dict[str, tuple[int, ...]], model: nn.Module, file: str) -> dict[str, str]:
    """The model's name for each key."""
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    if not shapes:
        raise ValueError(f"weights: {file} holds no tensors")
    names: dict[str, str] = {}
    for key, shape in shapes.items():
        name = key if key in own else wrapped_name(key)
        if name not in own:
            close = difflib.get_close_matches(key, list(own), n=1)
            hint = f"; nearest: {close[0]!r}" if close else ""
            raise ValueError(
                f"weights: {file} holds {key!r}, which {type(model).__name__} does not have{hint}"
            )
        target = own[name]
        if tuple(target.shape) != shape:
            raise ValueError(
                f"weights: {key!r} has shape {shape} in {file} and {tuple(target.shape)} in the model"
            )
        if target.is_meta:
            raise ValueError(
                f"weights: {key!r} of the model is offloaded; patch before enabling sequential offload"
            )
        if not target.is_floating_point() or target.dtype.itemsize < 2:
            raise ValueError(f"weights: {key!r} of the model is quantized ({target.dtype})")
        names[key] = name
    if any(getattr(module, "fused_projections", False) for module in model.modules()):
        raise ValueError(
            "weights: the model's projections are fused; call unfuse_qkv_projections() and patch again"
        )
    return names
