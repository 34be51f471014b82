"""What is tested for each family, as data: the tests take their cases from here, and so does the table in
``docs/families.md`` (``python -m tests.support_matrix``).

Every entry is a claim that a test holds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import diffusers
import torch
from torch import Tensor, nn

from tests.patches import tiny_pipelines
from tests.patches.families import image_models, video_models
from vidattn.patches.families import Family, families
from vidattn.patterns import Neighborhood, Pattern

YES, NONE = "yes", "–"
FAILS = "fails unpatched"
FEATURES = (
    "sizes, batch, undo",
    "LoRA",
    "fused QKV",
    "one graph",
    "checkpointing",
    "ControlNet",
    "IP-Adapter",
)
"""Columns of the table; "one graph" is ``torch.compile(fullgraph=True)``."""


@dataclass(frozen=True)
class Model:
    """One tiny model, the same way for pictures and videos.

    Args:
        build: makes it.
        forward: its output at one size, batch 2.
        pattern: smaller than its grid.
    """

    build: Callable[[], nn.Module]
    forward: Callable[[nn.Module], Tensor]
    pattern: Pattern


def _image(name: str) -> Model:
    size = image_models.CASES[name].sizes[0]
    return Model(
        lambda: image_models.build(name),
        lambda model: image_models.output(model, image_models.inputs(name, *size)),
        Neighborhood((1, 3)),
    )


def _video(name: str) -> Model:
    case = video_models.CASES[name]

    def forward(model: nn.Module) -> Tensor:
        out, *more = model(**case.made(case.sizes[0]), return_dict=False)
        return torch.cat([part.flatten() for part in (*out, *more)]) if isinstance(out, list) else out

    return Model(case.build, forward, Neighborhood((2, 1, 3)))


def _tiny(name: str) -> Model:
    def forward(model: nn.Module) -> Tensor:
        return model(**tiny_pipelines.inputs(name), return_dict=False)[0]

    return Model(lambda: tiny_pipelines.denoiser(name), forward, Neighborhood(3))


TINY = ("flux", "sd", "sdxl")
MODELS: dict[str, Model] = {
    **{name: _image(name) for name in image_models.CASES},
    **{name: _video(name) for name in video_models.CASES},
    **{name: _tiny(name) for name in TINY},
}

FUSED = (
    "sd3 sd3_control pixart hunyuan_dit auraflow chroma flux2 kolors longcat cogvideox cogvideox-1.5 ltx"
    " skyreels chronoedit wan-animate wan wan-i2v wan-vace animatediff flux sd sdxl"
).split()
"""Models whose projections ``fuse_qkv_projections`` fuses; others have no such method, or it does nothing."""
FUSING_FAILS = ("sd3.5", "sd3.5_control", "ltx-2")
"""Models on which it fails, patched or not."""
DENSE_FAILS = {
    "one graph": (
        "lumina2",
        "hidream",
        "omnigen",
        "hunyuan_image_2",
        "hunyuan-video-1.5",
        "hunyuan-video-1.5-i2v",
    ),
    "checkpointing": ("hunyuan_image",),
}
"""Models on which a feature of torch or diffusers fails, patched or not."""

CONTROLNETS = {
    "flux": "test_features",
    "unet": "test_features",
    "sd3": "sd3_control",
    "hunyuan_dit": "hunyuan_dit_control",
    "qwen_image": "qwen_control",
    "z_image": "z_image_control",
    "cosmos": "cosmos-transfer",
    "animatediff": "sparse-control",
}
"""Families with a ControlNet, and the model or the file that tests it."""
IP_ADAPTERS = ("flux", "unet", "sd3")
"""Families whose IP-Adapters are tested, in ``test_features``."""


@lru_cache(maxsize=1)
def classes() -> dict[str, type]:
    """The class of each model, by name."""
    made = {name: type(case.build()) for name, case in image_models.CASES.items()}
    made |= {name: getattr(diffusers, case.model) for name, case in video_models.CASES.items()}
    return made | {name: type(tiny_pipelines.denoiser(name)) for name in TINY}


@lru_cache(maxsize=1)
def families_of() -> dict[str, str]:
    """The family of each model, by name."""
    by_class = {name: family.name for family in families() for name in family.classes}
    return {name: by_class[cls.__name__] for name, cls in classes().items()}


def has(name: str, feature: str) -> bool:
    """Whether diffusers gives the feature to a model's class."""
    cls = classes()[name]
    if feature == "fused QKV":
        return name in FUSED
    if feature == "checkpointing":
        return bool(getattr(cls, "_supports_gradient_checkpointing", False))
    return feature != "LoRA" or hasattr(cls, "add_adapter")


def with_feature(feature: str) -> list[str]:
    """Names of the models that have a feature."""
    return [name for name in MODELS if has(name, feature)]


def diffusion_families() -> list[Family]:
    """The families of diffusers' models; those of image encoders have tests of their own."""
    return [family for family in families() if hasattr(diffusers, family.classes[0])]


def representatives() -> dict[str, str]:
    """One model of each family: the first."""
    first: dict[str, str] = {}
    for name, family in families_of().items():
        first.setdefault(family, name)
    return first


def cell(family: str, feature: str) -> str:
    """What the table says about a family."""
    if feature == "ControlNet":
        return YES if family in CONTROLNETS else NONE
    if feature == "IP-Adapter":
        return YES if family in IP_ADAPTERS else NONE
    names = [name for name, its in families_of().items() if its == family]
    if not any(has(name, feature) for name in names):
        return NONE
    return FAILS if representatives()[family] in DENSE_FAILS.get(feature, ()) else YES
