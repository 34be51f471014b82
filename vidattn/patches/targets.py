"""The models inside what a user hands over: a pipeline, a model, or a compiled or wrapped model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from vidattn.patches.families import Family, families, family_of
from vidattn.patches.families._unfit import UNFIT


@dataclass(frozen=True)
class Target:
    """A supported model, and its name in its pipeline ("" for a model on its own)."""

    component: str
    model: nn.Module
    family: Family


def supported() -> dict[str, tuple[str, ...]]:
    """Families that can be patched, and their model classes; pipelines are supported through their models.

    Example:
        >>> supported()["ltx"]
        ('LTXVideoTransformer3DModel', 'LTX2VideoTransformer3DModel')
    """
    return {family.name: family.classes for family in families()}


def supported_text() -> str:
    """``supported()`` as the end of an error message."""
    return "; ".join(f"{name}: {', '.join(classes)}" for name, classes in supported().items())


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside torch.compile's and data parallel's wrappers."""
    while True:
        if isinstance(inner := getattr(model, "_orig_mod", None), nn.Module) or (
            type(model).__name__ in ("DistributedDataParallel", "DataParallel", "FullyShardedDataParallel")
            and isinstance(inner := getattr(model, "module", None), nn.Module)
        ):
            model = inner
        else:
            return model


def is_pipeline(target: Any) -> bool:
    """True for objects that hold their models as diffusers' pipelines do."""
    return not isinstance(target, nn.Module) and isinstance(getattr(target, "components", None), Mapping)


def modules_of(target: Any) -> dict[str, nn.Module]:
    """All models in ``target``, by component name.

    Raises:
        TypeError: it is neither a model nor a pipeline.
    """
    if isinstance(target, nn.Module):
        return {"": unwrap(target)}
    if not is_pipeline(target):
        kind = type(target).__name__
        raise TypeError(
            f"{kind} is neither a pipeline nor a model of diffusers; supported: {supported_text()}"
        )
    found: dict[str, nn.Module] = {}
    for name, component in target.components.items():
        if not isinstance(component, nn.Module):
            continue
        model = unwrap(component)
        nets = getattr(model, "nets", None)
        if type(model).__name__.startswith("Multi") and isinstance(nets, nn.ModuleList):
            found.update({f"{name}.nets.{i}": unwrap(net) for i, net in enumerate(nets)})
        else:
            found[name] = model
    return found


def targets_of(target: Any) -> list[Target]:
    """The supported models in ``target``.

    Raises:
        TypeError: there are none.
    """
    found: dict[int, Target] = {}
    modules = modules_of(target)
    for name, model in modules.items():
        family = family_of(model)
        if family is not None:
            found.setdefault(id(model), Target(name, model, family))
    if not found:
        seen = ", ".join(f"{n}: {type(m).__name__}" if n else type(m).__name__ for n, m in modules.items())
        reasons = {UNFIT[name] for name in (type(m).__name__ for m in modules.values()) if name in UNFIT}
        why = "".join(f"{reason}; " for reason in sorted(reasons))
        raise TypeError(
            f"nothing to patch in {type(target).__name__} ({seen}); {why}supported: {supported_text()}"
        )
    return list(found.values())
