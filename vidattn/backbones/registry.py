"""Models by name: a family is a builder and its published configurations."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any

from vidattn.backbones import models
from vidattn.backbones.backbone import Backbone
from vidattn.backbones.checkpoints import load_file
from vidattn.backbones.options import Options
from vidattn.patterns.text import nearest


@dataclass(frozen=True)
class Family:
    """Facts about one family of models; every file in ``vidattn.backbones.models`` has one as ``FAMILY``.

    Args:
        name: the family's.
        paper: authors, title or venue, and arXiv number.
        build: makes a model from a configuration and options.
        configs: the published configurations by model name.
        parameters: the published (or, where the paper rounds, independently counted) number of parameters.
        checkpoints: the authors' file names per model, without ending.
        options: where a model's published input differs from 224 pixels: its default options.
    """

    name: str
    paper: str
    build: Callable[[Any, Options], Backbone]
    configs: Mapping[str, Any]
    parameters: Mapping[str, str]
    checkpoints: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    options: Mapping[str, Options] = field(default_factory=dict)


@lru_cache(maxsize=1)
def families() -> tuple[Family, ...]:
    """All families, in the order of their files' names."""
    found = sorted(
        info.name for info in pkgutil.iter_modules(models.__path__) if not info.name.startswith("_")
    )
    return tuple(importlib.import_module(f"{models.__name__}.{name}").FAMILY for name in found)


def family_of(name: str) -> Family:
    """The family of a model.

    Raises:
        ValueError: no such model.
    """
    for family in families():
        if name in family.configs:
            return family
    raise ValueError(f"name={name!r}: {nearest(str(name), list_models())}")


def list_models(filter: str = "*") -> list[str]:
    """Names of all models that fit a pattern with ``*`` and ``?``, sorted.

    Args:
        filter: for example ``"nat_*"``.

    Example:
        >>> list_models("nat_m*")
        ['nat_mini']
    """
    names = (name for family in families() for name in family.configs)
    return sorted(name for name in names if fnmatchcase(name, filter))


def create_model(name: str, pretrained_file: str | Path | None = None, **kwargs: Any) -> Backbone:
    """A model by name, with random weights or those of a file.

    Args:
        name: one of ``list_models()``.
        pretrained_file: a .safetensors file with the authors' parameter names or ours. A head with another
            number of classes than the model's stays random; all else must fit.
        **kwargs: options of every model (``in_chans``, ``num_classes``, ``img_size``, ``drop_rate``,
            ``drop_path_rate``, ``global_pool``), or fields of the family's configuration.

    Returns:
        The model, in evaluation mode.

    Raises:
        ValueError: unknown names or options, values out of range, a file of another kind, or weights that do
            not fit.
        FileNotFoundError: no such file.

    Example:
        >>> model = create_model("nat_mini", num_classes=10)
        >>> model(torch.randn(1, 3, 64, 64)).shape
        torch.Size([1, 10])
    """
    family = family_of(name)
    config, options = family.configs[name], family.options.get(name, Options())
    for key, value in kwargs.items():
        if key in (allowed := {f.name for f in fields(Options)}):
            options = replace(options, **{key: value})
        elif key in (own := {f.name for f in fields(config)}):
            config = replace(config, **{key: value})
        else:
            raise ValueError(f"{key}={value!r}: {nearest(key, sorted(allowed | own))}")
    model = family.build(config, options)
    if pretrained_file is not None:
        load_file(model, Path(pretrained_file))
    return model
