"""Trained weights that come with a pattern: put into a model, and taken out again."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn


class SwappedWeights:
    """Tensors that stand in for a model's own.

    Only references are exchanged: the model's own tensors are kept as they are, and come back bit for bit. A
    layer that runs dense runs on its own weights (:meth:`show`).

    Args:
        tensors: by parameter name.
        added: names of those that are additions to the model's own (LoRA).
    """

    def __init__(self, tensors: dict[str, Tensor], added: Iterable[str] = ()) -> None:
        self._out = tensors  # what is not in the model now, by parameter name
        self._added = set(added)  # those that are still to be added to the model's own
        self._in: set[str] = set()  # names whose trained tensor is in the model
        self._hidden: frozenset[str] = frozenset()

    @property
    def names(self) -> frozenset[str]:
        """Parameters of the model that have a tensor here."""
        return frozenset(self._out)

    def apply(self, model: nn.Module) -> None:
        """Put the tensors in, in the dtype and on the device of those that they replace."""
        self._exchange(model, self._out.keys() - self._in)
        self._hidden = frozenset()

    def restore(self, model: nn.Module) -> None:
        """Put the model's own tensors back, wherever it is by now; ``apply`` can exchange them again."""
        self._exchange(model, set(self._in))

    def show(self, model: nn.Module, hidden: frozenset[str]) -> None:
        """Put the tensors in, but for the layers named ``hidden``, which get their own back."""
        if hidden == self._hidden:
            return
        off = {n for n in self._out if any(n.startswith(f"{layer}.") for layer in hidden)}
        self._exchange(model, (self._in & off) | (self._out.keys() - off - self._in))
        self._hidden = hidden

    def _exchange(self, model: nn.Module, names: Iterable[str]) -> None:
        now = dict(model.named_parameters()) | dict(model.named_buffers())
        for name in names:
            # PEFT renames the parameters of a layer that it wraps, and back when it is taken off
            known = (name, wrapped_name(name), name.replace(".base_layer.", "."))
            target = next(now[n] for n in known if n in now)
            stored, self._out[name] = self._out[name], target.data
            if name in self._added:  # only now is it certain that the model has its own in place
                self._added.remove(name)
                stored = target.data.float() + stored.to(target.device)
            target.data = stored.to(device=target.device, dtype=target.dtype)
            self._in ^= {name}


def wrapped_name(name: str) -> str:
    """The name of a parameter once PEFT has wrapped its layer."""
    head, _, tail = name.rpartition(".")
    return f"{head}.base_layer.{tail}"
