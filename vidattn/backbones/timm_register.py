"""Importing this module puts every model into timm's registry, as ``vidattn_`` and its name.

``timm.create_model("vidattn_nat_tiny", features_only=True, out_indices=(1, 2, 3))`` then works as for timm's
own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vidattn.backbones.backbone import Backbone
from vidattn.backbones.registry import create_model, families

PREFIX = "vidattn_"
default_cfgs: dict[str, Any] = {}
"""timm reads the preprocessing of the registered models here."""


def register() -> list[str]:
    """Register all models that are not yet registered; importing the module calls it.

    Returns:
        The names under which timm knows them.

    Raises:
        ImportError: timm is not installed.
    """
    try:
        from timm.models import build_model_with_cfg, is_model, register_model
    except ImportError as error:
        raise ImportError("timm is not installed: pip install 'vidattn[timm]'") from error
    names = []
    for family in families():
        for name in family.configs:
            names.append(PREFIX + name)
            if is_model(PREFIX + name):
                continue
            default_cfgs[PREFIX + name] = _preprocessing(name)
            entry = _entry(name, build_model_with_cfg)
            globals()[entry.__name__] = register_model(entry)
    return names


def _preprocessing(name: str) -> dict[str, Any]:
    options = next((f.options[name] for f in families() if name in f.options), None)
    size = (224, 224) if options is None else options.image
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, *size),
        "pool_size": None,
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "classifier": "head",
        "license": "apache-2.0",
    }


def _entry(name: str, build: Callable[..., Any]) -> Callable[..., Any]:
    def make(**kwargs: Any) -> Backbone:
        return create_model(name, **kwargs)

    def entry(pretrained: bool = False, **kwargs: Any) -> Any:
        # a wrapper for features gets as many maps as the model has, unless it is told which
        features = {"feature_cls": "getter", "out_indices": 4}
        return build(make, PREFIX + name, pretrained, feature_cfg=features, **kwargs)

    entry.__name__ = entry.__qualname__ = PREFIX + name
    entry.__module__ = __name__
    entry.__doc__ = f"vidattn's ``{name}``; weights are loaded with its ``pretrained_file``."
    return entry


register()
