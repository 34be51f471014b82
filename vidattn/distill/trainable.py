"""The weights that train: copies of a layer's projections, or low-rank additions to them.

Both can be switched off, which leaves the teacher, and removed, which leaves the model as it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import nn

PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")


class Trainable(Protocol):
    """One kind of trained weights."""

    def named(self) -> dict[str, nn.Parameter]:
        """The parameters, by the names that weights files have for them."""

    def on(self) -> None:
        """The student."""

    def off(self) -> None:
        """The teacher."""

    def remove(self) -> None:
        """For good."""


def projections(layers: Mapping[str, nn.Module]) -> dict[str, nn.Linear]:
    """The projections of attention layers by name. A layer without an output projection (FLUX's single
    blocks) has three.

    Raises:
        ValueError: a layer has none of them, or one that is no plain linear layer.
    """
    found: dict[str, nn.Linear] = {}
    for name, layer in layers.items():
        modules = dict(layer.named_modules())
        for projection in PROJECTIONS:
            module = modules.get(projection)
            if module is None and projection == "to_out.0":
                continue
            if not isinstance(module, nn.Linear) or not module.weight.is_floating_point():
                kind = type(module).__name__
                raise ValueError(f"{name}.{projection} is no linear layer with float weights, but {kind}")
            found[f"{name}.{projection}"] = module
    return found


class Exchanged(nn.Module):
    """Copies of all projections, in the place of the model's own while on.

    Whole parameters are exchanged, not their data: autograd then keeps to the one it saw.
    """

    def __init__(
        self, model: nn.Module, layers: Mapping[str, nn.Module], rank: int, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self._places: list[tuple[str, nn.Linear, str, nn.Parameter]] = []
        self._own: list[nn.Parameter] = []
        for name, module in projections(layers).items():
            for key, parameter in module.named_parameters(recurse=False):
                copy = nn.Parameter(parameter.detach().to(dtype, copy=True))
                self.register_parameter(f"{name}.{key}".replace(".", "|"), copy)
                self._places.append((f"{name}.{key}", module, key, copy))
                self._own.append(parameter)
        self.on()

    def named(self) -> dict[str, nn.Parameter]:
        return {name: copy for name, _, _, copy in self._places}

    def on(self) -> None:
        for _, module, key, copy in self._places:
            module._parameters[key] = copy

    def off(self) -> None:
        for (_, module, key, _), own in zip(self._places, self._own, strict=True):
            module._parameters[key] = own

    def remove(self) -> None:
        self.off()


class LowRank(nn.Module):
    """PEFT's LoRA on all projections, alpha = rank.

    Raises:
        ImportError: peft is not installed.
    """

    def __init__(
        self, model: nn.Module, layers: Mapping[str, nn.Module], rank: int, dtype: torch.dtype
    ) -> None:
        super().__init__()
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError as error:
            raise ImportError("train='lora' needs peft: pip install peft") from error
        names = list(projections(layers))
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=names)
        inject_adapter_in_model(config, model, adapter_name="vidattn")
        self._places: list[tuple[str, Any]] = [(name, model.get_submodule(name)) for name in names]
        self._model = [model]  # in a list, so that it is not registered a second time
        for _, module in self._places:
            module.lora_A["vidattn"].to(dtype)
            module.lora_B["vidattn"].to(dtype)
        for name, parameter in self.named().items():
            parameter.requires_grad_(True)
            self.register_parameter(name.replace(".", "|"), parameter)

    def named(self) -> dict[str, nn.Parameter]:
        return {
            f"{name}.{half}.weight": getattr(module, half)["vidattn"].weight
            for name, module in self._places
            for half in ("lora_A", "lora_B")
        }

    def on(self) -> None:
        for _, module in self._places:
            module._disable_adapters = False  # enable_adapters would also change requires_grad

    def off(self) -> None:
        for _, module in self._places:
            module._disable_adapters = True

    def remove(self) -> None:
        model = self._model[0]
        for name, module in self._places:
            head, _, tail = name.rpartition(".")
            setattr(model.get_submodule(head), tail, module.base_layer)
        model.__dict__.pop("peft_config", None)
