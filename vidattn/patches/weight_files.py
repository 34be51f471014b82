"""Weights files: safetensors only, and checked whole against the model before anything is patched.

Three layouts are read. Names of the model's parameters, as CLEAR's and our own files have them, with the
parameters of a substitute's modules behind their layer's name; LoRA pairs under the same names
(``{layer}.to_q.lora_A.weight``), which are added to the model's weights; and LinFusion's published files,
whose layers are numbers, in the order of the ``config.json`` beside the file or of the UNet's modules.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vidattn.patches.weights import SwappedWeights, wrapped_name

_A, _B = ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True)
class WeightsFile:
    """The tensors of a file by the names that the model has for them, not checked against it yet."""

    name: str
    tensors: Mapping[str, Tensor]
    added: frozenset[str] = frozenset()  # those that are to be added to the model's own
    numbered: bool = False  # LinFusion's published layout, which holds all of a layer

    def shapes_of(self, layer: str) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors behind a layer's name."""
        prefix = f"{layer}."
        return {k[len(prefix) :]: tuple(t.shape) for k, t in self.tensors.items() if k.startswith(prefix)}


def read_file(path: Any, model: nn.Module) -> WeightsFile:
    """The tensors of a safetensors file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no safetensors file, holds no tensors or values that are not finite, or numbers more
            or fewer layers than the model has.
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
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
            metadata = opened.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"weights={str(path)!r}: not readable as safetensors ({error})") from error
    if not tensors:
        raise ValueError(f"weights: {file.name} holds no tensors")
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"weights: {key!r} in {file.name} holds values that are not finite")
    numbered = all(re.match(r"\d+\.", key) for key in tensors)
    if numbered:
        tensors = _named(tensors, file, model)
    made, added = _products(tensors, file.name, metadata)
    return WeightsFile(file.name, made, added, numbered)


def _named(tensors: Mapping[str, Tensor], file: Path, model: nn.Module) -> dict[str, Tensor]:
    """LinFusion's numbered layers under their names."""
    names = [name for name, _ in model.named_modules() if name.endswith("attn1")]
    config = file.with_name("config.json")
    if config.is_file():
        try:
            listed = json.loads(config.read_text(encoding="utf-8")).get("modules_list", [])
            names = [entry["module_name"] for entry in listed] or names
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"weights: {config} cannot be read ({error})") from error
    numbers = {int(key.partition(".")[0]) for key in tensors}
    if numbers != set(range(len(names))):
        raise ValueError(
            f"weights: {file.name} holds {len(numbers)} layers and {type(model).__name__} has {len(names)}"
            " self-attention layers; they are for another model"
        )
    split = ((key.partition("."), tensor) for key, tensor in tensors.items())
    return {f"{names[int(number)]}.{rest}": tensor for (number, _, rest), tensor in split}


def _products(
    tensors: Mapping[str, Tensor], file: str, metadata: Mapping[str, str]
) -> tuple[dict[str, Tensor], frozenset[str]]:
    """LoRA pairs as (lora_alpha / rank) B A, and the names that they have then."""
    made = {key: tensor for key, tensor in tensors.items() if not key.endswith((_A, _B))}
    names = sorted({key[: -len(_A)] for key in tensors if key.endswith((_A, _B))})
    for name in names:
        down, up = tensors.get(name + _A), tensors.get(name + _B)
        if down is None or up is None:
            raise ValueError(f"weights: {file} holds only one half of the LoRA pair of {name!r}")
        if down.ndim != 2 or up.ndim != 2 or up.shape[1] != down.shape[0]:
            raise ValueError(
                f"weights: the LoRA pair of {name!r} in {file} has shapes {tuple(down.shape)} and"
                f" {tuple(up.shape)}, which do not fit together"
            )
        scale = float(metadata.get("lora_alpha", down.shape[0])) / down.shape[0]
        made[f"{name}.weight"] = scale * (up.float() @ down.float())
    return made, frozenset(f"{name}.weight" for name in names)


def fit(
    file: WeightsFile, model: nn.Module, modules: Mapping[str, nn.Parameter], needed: Iterable[str] = ()
) -> SwappedWeights:
    """Load the tensors of ``modules`` from the file; the others are returned for the model.

    Args:
        file: as read.
        model: not changed.
        modules: parameters of substitutes, by layer and name: all must be in the file.
        needed: further parameters of the model that must be.

    Raises:
        ValueError: keys missing or unexpected, other shapes, or a model in a state in which the tensors would
            not be used.
    """
    for name in [*modules, *needed]:
        if name not in file.tensors:
            raise ValueError(f"weights: {file.name} has no {name!r}: not the weights for this preset")
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    names = {key: _target(key, own, modules, model, file.name) for key in file.tensors}
    for key, tensor in file.tensors.items():
        target = modules[key] if key in modules else own[names[key]]
        _check(key, tensor, target, file.name)
    if any(getattr(module, "fused_projections", False) for module in model.modules()):
        raise ValueError(
            "weights: the model's projections are fused; call unfuse_qkv_projections() and patch again"
        )
    with torch.no_grad():
        for key, parameter in modules.items():
            parameter.copy_(file.tensors[key])
    tensors = {names[k]: t for k, t in file.tensors.items() if k not in modules}
    return SwappedWeights(tensors, [names[k] for k in file.added])


def _target(
    key: str, own: Mapping[str, Tensor], modules: Mapping[str, Any], model: nn.Module, file: str
) -> str:
    """The model's name for a key."""
    name = key if key in own or key in modules else wrapped_name(key)
    if name in own or name in modules:
        return name
    close = difflib.get_close_matches(key, [*own, *modules], n=1)
    hint = f"; nearest: {close[0]!r}" if close else ""
    raise ValueError(f"weights: {file} holds {key!r}, which {type(model).__name__} does not have{hint}")


def _check(key: str, tensor: Tensor, target: Tensor, file: str) -> None:
    if target.shape != tensor.shape:
        raise ValueError(
            f"weights: {key!r} has shape {tuple(tensor.shape)} in {file}"
            f" and {tuple(target.shape)} in the model"
        )
    if target.is_meta:
        raise ValueError(
            f"weights: {key!r} of the model is offloaded; patch before enabling sequential offload"
        )
    if not target.is_floating_point() or target.dtype.itemsize < 2:
        raise ValueError(f"weights: {key!r} of the model is quantized ({target.dtype})")
