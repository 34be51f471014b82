"""Sizes of denoisers, without weights: of well-known models by name, of pipeline folders by their configs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidattn import demo_models
from vidattn.cli.arguments import BadArgument
from vidattn.layout import TokenLayout
from vidattn.patterns.text import nearest


@dataclass(frozen=True)
class Stack:
    """Self-attention layers of one size.

    Args:
        layers: how many.
        heads: query heads.
        head_dim: their size.
        down: how much coarser than the finest its grid is, per side.
    """

    layers: int
    heads: int
    head_dim: int
    down: int = 1


@dataclass(frozen=True)
class Denoiser:
    """What decides the attention of a denoiser's step.

    Args:
        about: the model in words.
        stacks: its self-attention layers.
        pixels: side of the picture that a token of the finest grid stands for.
        native: (height, width) in pixels that it was trained at.
        frames: frames that a token stands for; 0 for image models.
        native_frames: of a clip that it was trained at.
        text: text tokens in the sequence.
        text_last: they stand behind the grid.
        forwards: passes of a step; 2 with classifier-free guidance.
    """

    about: str
    stacks: tuple[Stack, ...]
    pixels: int
    native: tuple[int, int]
    frames: int = 0
    native_frames: int = 1
    text: int = 0
    text_last: bool = False
    forwards: int = 1

    @property
    def kind(self) -> str:
        """ "image" or "video", as presets have it."""
        return "video" if self.frames else "image"

    def layout(self, stack: Stack, size: tuple[int, int], frames: int) -> TokenLayout:
        """The tokens of a stack at a size in pixels."""
        height, width = (side // self.pixels // stack.down for side in size)
        steps = (frames - 1) // self.frames + 1 if self.frames else 1
        before, after = (0, self.text) if self.text_last else (self.text, 0)
        return TokenLayout((steps, height, width), before, after)


_HD = (1024, 1024)
MODELS: dict[str, Denoiser] = {
    "flux": Denoiser("FLUX.1, 12B", (Stack(57, 24, 128),), 16, _HD, text=512),
    "qwen-image": Denoiser("Qwen-Image, 20B", (Stack(60, 24, 128),), 16, (1328, 1328), text=256, forwards=2),
    "sd3.5-large": Denoiser(
        "Stable Diffusion 3.5 large, 8B", (Stack(38, 38, 64),), 16, _HD, text=333, text_last=True, forwards=2
    ),
    "sdxl": Denoiser(
        "Stable Diffusion XL, 2.6B", (Stack(10, 10, 64), Stack(60, 20, 64, down=2)), 16, _HD, forwards=2
    ),
    "wan-1.3b": Denoiser("Wan 2.1, 1.3B", (Stack(30, 12, 128),), 16, (480, 832), 4, 81, forwards=2),
    "wan-14b": Denoiser("Wan 2.1 and 2.2, 14B", (Stack(40, 40, 128),), 16, (480, 832), 4, 81, forwards=2),
    "hunyuan-video": Denoiser(
        "HunyuanVideo, 13B", (Stack(60, 24, 128),), 16, (720, 1280), 4, 129, text=256, text_last=True
    ),
    "cogvideox-5b": Denoiser(
        "CogVideoX, 5B", (Stack(42, 48, 64),), 16, (480, 720), 4, 49, text=226, forwards=2
    ),
}
"""Well-known models by name."""


@dataclass(frozen=True)
class _Class:
    """How a transformer class's config is read.

    Args:
        like: the model of the table that it is.
        layers: config entries that count self-attention layers.
        packing: latent pixels of a token's side, beside ``patch_size``.
    """

    like: str
    layers: tuple[str, ...]
    packing: int = 1


_CLASSES = {
    "FluxTransformer2DModel": _Class("flux", ("num_layers", "num_single_layers"), packing=2),
    "QwenImageTransformer2DModel": _Class("qwen-image", ("num_layers",)),
    "SD3Transformer2DModel": _Class("sd3.5-large", ("num_layers",)),
    "WanTransformer3DModel": _Class("wan-14b", ("num_layers",)),
    "HunyuanVideoTransformer3DModel": _Class("hunyuan-video", ("num_layers", "num_single_layers")),
    "CogVideoXTransformer3DModel": _Class("cogvideox-5b", ("num_layers",)),
}


def find(name: str) -> Denoiser:
    """The model of that name, of a demo model, or of a folder that diffusers saved.

    Raises:
        BadArgument: there is none, or its transformer is of a class that is not known here.
    """
    if name in MODELS:
        return MODELS[name]
    shipped = demo_models.shipped()
    try:
        if name in shipped:
            return _read(shipped[name])
        if Path(name).is_dir():
            return _read(demo_models.read(Path(name)))
    except ValueError as error:
        raise BadArgument("MODEL", str(error)) from error
    raise BadArgument(
        "MODEL", f"{name!r} is no folder and no known model: {nearest(name, [*MODELS, *shipped])}"
    )


def _read(folder: demo_models.PipelineFolder) -> Denoiser:
    config, vae = (_config(folder.path / part / "config.json") for part in ("transformer", "vae"))
    cls = str(config.get("_class_name"))
    if cls not in _CLASSES:
        raise ValueError(f"{folder.path}: transformer {cls!r} is not one of {', '.join(_CLASSES)}")
    facts = _CLASSES[cls]
    model = MODELS[facts.like]
    patch = config.get("patch_size") or 1
    side = patch[-1] if isinstance(patch, list) else patch
    pixels = _spatial(vae) * side * facts.packing
    layers = sum(int(config[key]) for key in facts.layers)
    stack = Stack(layers, config["num_attention_heads"], config["attention_head_dim"])
    defaults = folder.defaults
    return Denoiser(
        f"{folder.pipeline} in {folder.path}",
        (stack,),
        pixels,
        (defaults.get("height", model.native[0]), defaults.get("width", model.native[1])),
        int(vae.get("scale_factor_temporal") or 4) if model.frames else 0,
        defaults.get("num_frames", model.native_frames),
        defaults.get("max_sequence_length", model.text) if model.text else 0,
        model.text_last,
        2 if defaults.get("true_cfg_scale", 1.0) > 1 else model.forwards,
    )


def _spatial(vae: dict[str, Any]) -> int:
    """Pixels that a latent pixel's side stands for."""
    if "scale_factor_spatial" in vae:
        return int(vae["scale_factor_spatial"])
    if "AutoencoderKLWan" in str(vae.get("_class_name")):
        return 8
    return 2 ** (len(vae.get("block_out_channels", (0, 0, 0, 0))) - 1)


def _config(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    return dict(content)
