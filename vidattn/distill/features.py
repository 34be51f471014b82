"""What teacher and student are compared by inside: outputs of attention layers and of UNet stages."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

Call = tuple[tuple[Any, ...], dict[str, Any]]


class Recorder:
    """Keeps what modules return, and with ``calls`` what they were given, while :meth:`recording`.

    Args:
        modules: to watch, by name.
        calls: also keep arguments.
    """

    def __init__(self, modules: Mapping[str, nn.Module], calls: bool = False) -> None:
        self.outputs: dict[str, Tensor] = {}
        self.calls: dict[str, Call] = {}
        self._on = False
        self._hooks = [m.register_forward_hook(self._keep(name)) for name, m in modules.items()]
        if calls:
            self._hooks += [
                m.register_forward_pre_hook(self._keep_call(name), with_kwargs=True)
                for name, m in modules.items()
            ]

    @contextlib.contextmanager
    def recording(self) -> Iterator[dict[str, Tensor]]:
        """Outputs by module name, filled by the forwards inside."""
        self.outputs, self.calls, self._on = {}, {}, True
        try:
            yield self.outputs
        finally:
            self._on = False  # gradient checkpointing runs modules again, in the backward

    def close(self) -> None:
        """Take the hooks off."""
        for hook in self._hooks:
            hook.remove()

    def _keep(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if self._on:
                self.outputs[name] = joined(output)

        return hook

    def _keep_call(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._on:
                self.calls[name] = (args, kwargs)

        return hook


def joined(output: Any) -> Tensor:
    """A module's output as one tensor: joint attention returns picture and text apart."""
    if isinstance(output, Tensor):
        return output
    tensors = [t for t in output if isinstance(t, Tensor)]
    if tensors and all(t.ndim == 3 and t.shape[-1] == tensors[0].shape[-1] for t in tensors):
        return torch.cat(tensors, 1)
    return tensors[0]


def weights_of(layers: list[str], given: Mapping[str, float]) -> dict[str, float]:
    """The weight of each layer that counts, by the first glob that fits; all 1 where none are given.

    Raises:
        ValueError: no layer counts.
    """
    if not given:
        return dict.fromkeys(layers, 1.0)
    found = {name: next((w for g, w in given.items() if fnmatchcase(name, g)), 0.0) for name in layers}
    kept = {name: weight for name, weight in found.items() if weight}
    if not kept:
        raise ValueError(f"layer_weights={dict(given)!r}: fits none of the layers, as {layers[0]!r}")
    return kept


def mean_difference(
    ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], weights: Mapping[str, float]
) -> Tensor:
    """Weighted mean over layers of the mean squared difference, in float32."""
    parts = [w * nn.functional.mse_loss(ours[n].float(), theirs[n].float()) for n, w in weights.items()]
    return torch.stack(parts).sum() / sum(weights.values())


def stages_without_attention(model: nn.Module) -> dict[str, nn.Module]:
    """The UNet stages whose last feature KOALA compares: those with no attention to compare."""
    found = {}
    for stack in ("down_blocks", "up_blocks"):
        for index, block in enumerate(getattr(model, stack, ())):
            if not hasattr(block, "attentions"):
                found[f"{stack}.{index}"] = block
    return found
