"""What is measured: attention calls of real models, as data."""

from __future__ import annotations

from dataclasses import dataclass

from vidattn.layout import Grid, TokenLayout

LINEAR = "linear"
"""Stands where a pattern's text does: ``vidattn.linear_attention``."""


@dataclass(frozen=True)
class Case:
    """Attention calls of one size.

    Args:
        name: as the command line takes it.
        batch: items.
        heads: query heads, as many key heads.
        head_dim: of queries, keys and values.
        grid: (T, H, W) in tokens.
        patterns: text forms, each a call; "linear" for linear attention.
        text_before: text tokens in front of the grid.
        text_after: text tokens behind it.
        about: where the size comes from.
        published: useful TFLOP/s that NATTEN's Hopper kernel reached on an H100, forward, float16, by pattern
            (its documentation, 0.20.0).
    """

    name: str
    batch: int
    heads: int
    head_dim: int
    grid: Grid
    patterns: tuple[str, ...]
    text_before: int = 0
    text_after: int = 0
    about: str = ""
    published: tuple[tuple[str, float], ...] = ()

    @property
    def layout(self) -> TokenLayout:
        """The grid with its text."""
        return TokenLayout(self.grid, self.text_before, self.text_after)


def _flux(pixels: int, patterns: tuple[str, ...]) -> Case:
    side = pixels // 16
    return Case(f"flux-{pixels}", 1, 24, 128, (1, side, side), patterns, text_before=512, about="FLUX.1")


def _cpu(side: int, patterns: tuple[str, ...], frames: int = 1, head_dim: int = 64) -> Case:
    name = f"cpu-{side}" if frames == 1 else f"cpu-{frames}x{side}"
    name += f"-d{head_dim}" if head_dim != 64 else ""
    return Case(name, 1, 4, head_dim, (frames, side, side), patterns, about="small enough for a CPU")


_DISCS = ("disc:radius=8", "disc:radius=16", "disc:radius=32")
_W80, _W80_S16 = "neighborhood:window=80", "neighborhood:window=80,stride=16"
_HUNYUAN = "neighborhood:window=18x24x24"
_HUNYUAN_S = "neighborhood:window=18x24x24,stride=16x8x8"
_LINE = "neighborhood:window=1x1x2048"
_COSMOS_A = "neighborhood:window=24x12x16,stride=1x4x1,dilation=1x1x5"
_COSMOS_B = "neighborhood:window=24x20x40,stride=1x4x8"

GPU = (
    _flux(1024, ("full", "neighborhood:window=17", *_DISCS)),
    _flux(2048, ("full", "neighborhood:window=33", *_DISCS)),
    _flux(4096, ("full", "neighborhood:window=33", _W80, _W80_S16, *_DISCS)),
    _flux(8192, ("neighborhood:window=33",)),
    Case(
        "flux-4k-natten", 1, 24, 128, (1, 256, 256), (_W80, _W80_S16), about="NATTEN's table: no text",
        published=((_W80, 318), (_W80_S16, 651)),
    ),
    Case(
        "hunyuan", 1, 24, 128, (30, 48, 80),
        (_HUNYUAN, _HUNYUAN_S, "groups:region=blocks", "groups:region=cross", "radial", "sta"),
        text_after=256, about="HunyuanVideo, 720p, 117 frames",
    ),
    Case(
        "hunyuan-natten", 1, 24, 128, (30, 48, 80), (_HUNYUAN, _HUNYUAN_S), about="NATTEN's table: no text",
        published=((_HUNYUAN, 186), (_HUNYUAN_S, 628)),
    ),
    Case(
        "wan-1.3b", 1, 12, 128, (21, 30, 52), ("neighborhood:window=9x15x15", "radial:decay=0.2", "radial"),
        about="Wan 2.1 1.3B, 480x832, 81 frames",
    ),
    Case(
        "wan-14b", 1, 40, 128, (21, 45, 80),
        ("neighborhood:window=9x21x21", "radial:decay=0.2", "radial", "sliding:base=30x52"),
        about="Wan 2.1 14B, 720x1280, 81 frames",
    ),
    Case(
        "sdxl-2048", 2, 10, 64, (1, 128, 128), ("neighborhood:window=33", LINEAR),
        about="SDXL's 10-head blocks at 2048 px, with guidance",
    ),
    Case(
        "ltx-vae-5", 1, 4, 64, (79, 192, 192), ("neighborhood:window=11x11x11",),
        about="LTX-2.5's diffusion VAE decoder, dominant stage",
    ),
    Case(
        "ltx-vae-0", 1, 32, 64, (18, 32, 48), ("neighborhood:window=3x7x7",),
        about="LTX-2.5's diffusion VAE decoder, first stage",
    ),
    Case(
        "nat", 64, 2, 32, (1, 56, 56), ("neighborhood:window=7", "neighborhood:window=7,dilation=8"),
        about="NAT and DiNAT, first stage, 64 images of 224 px",
    ),
    Case(
        "line", 1, 1, 128, (1, 1, 32768), (_LINE, f"{_LINE},stride=1x1x256", f"{_LINE},stride=1x1x2048"),
        about="NATTEN's table",
        published=((_LINE, 362), (f"{_LINE},stride=1x1x256", 548), (f"{_LINE},stride=1x1x2048", 580)),
    ),
    Case(
        "cosmos", 1, 16, 128, (24, 44, 80), (_COSMOS_A, _COSMOS_B), about="Cosmos-Predict2 2B, 720p",
    ),
)  # fmt: skip

CPU = (
    _cpu(16, ("neighborhood:window=5",)),
    _cpu(32, ("neighborhood:window=9", "neighborhood:window=17", "disc:radius=8", LINEAR)),
    _cpu(48, ("neighborhood:window=9", "neighborhood:window=25")),
    _cpu(80, ("neighborhood:window=17",)),
    _cpu(64, ("neighborhood:window=9", "neighborhood:window=17", "neighborhood:window=33", "disc:radius=16",
              "groups:region=cross,size=1x16x16", LINEAR)),
    _cpu(16, ("neighborhood:window=5x9x9", "radial:decay=0.5", "radial:decay=0.2"), frames=9),
    _cpu(48, ("neighborhood:window=9", "neighborhood:window=25"), head_dim=32),
    _cpu(48, ("neighborhood:window=9", "neighborhood:window=25"), head_dim=128),
)  # fmt: skip

CASES: dict[str, Case] = {case.name: case for case in (*GPU, *CPU)}
"""Every case by name."""


def default_cases(kind: str) -> tuple[Case, ...]:
    """The cases that fit a device of this kind, "cpu" or "cuda"."""
    return CPU if kind == "cpu" else GPU
