"""Vision backbones: mixers and ViT-style models of the field, under one set of conventions.

``create_model("nat_tiny")`` builds a model; ``list_models()`` names them; ``mixers`` has the parts that mix
tokens; ``import vidattn.backbones.timm_register`` puts all models into timm's registry.
"""

from vidattn.backbones import mixers
from vidattn.backbones.registry import create_model, list_models
from vidattn.backbones.tiled import run_tiled
from vidattn.backbones.timm_vit import patch_timm_vit

__all__ = ["create_model", "list_models", "mixers", "patch_timm_vit", "run_tiled"]
