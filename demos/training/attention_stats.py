"""How local emoji-flux's attention is: image-to-image attention in square windows, by layer and noise level.

For each radius r, ``mass`` is the share of a token's image-to-image attention on the tokens at most r rows
and r columns away, and ``area`` the share of those tokens, which uniform attention would give. The same is
measured for random weights of the same shape. Text tokens are left out of both sums. Runs on a CPU.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import diffusers.models.transformers.transformer_flux as flux_module
import numpy as np
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel

from .data import Studio
from .flux import noise_level, velocity
from .flux import pack as pack_latents
from .text import IMAGE_TOKENS, token_ids
from .vae import encode

RADII = (1, 2, 4, 8, 16)
LEVELS = (0.9, 0.7, 0.5, 0.3, 0.1)


class Probe:
    """Stands in for diffusers' attention call and adds up the attention inside each window."""

    def __init__(self, side: int) -> None:
        grid = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"), -1).view(
            -1, 2
        )
        distance = (grid[:, None] - grid[None]).abs().amax(-1)
        self.windows = [(distance <= r).float() for r in RADII]
        self.rows: list[tuple[list[float], float]] = []

    def __call__(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **_: Any) -> torch.Tensor:
        """(N, L, heads, d) in, the same out; exact attention in float32."""
        q, k, v = (x.transpose(1, 2).float() for x in (query, key, value))
        weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
        image = weights[..., IMAGE_TOKENS:, IMAGE_TOKENS:]
        to_text = 1 - image.sum(-1).mean().item()
        image = image / image.sum(-1, keepdim=True)
        self.rows.append(([(image * w).sum(-1).mean().item() for w in self.windows], to_text))
        return (weights @ v).transpose(1, 2).to(query.dtype)


def measure(
    parts: torch.nn.ModuleDict, latents: torch.Tensor, tokens: list[torch.Tensor]
) -> list[dict[str, Any]]:
    """One row for each noise level, layer and radius."""
    x0 = pack_latents(latents)
    side = int(x0.shape[1] ** 0.5)
    out = []
    original = flux_module.dispatch_attention_fn
    try:
        for level in LEVELS:
            probe = Probe(side)
            flux_module.dispatch_attention_fn = probe
            noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(3))
            for i in range(len(x0)):  # one picture at a time: the maps are large
                part = [t[i : i + 1] for t in tokens]
                velocity(parts, torch.lerp(x0, noise, level)[i : i + 1], torch.tensor([level]), part)
            layers = len(probe.rows) // len(x0)
            for layer in range(layers):
                rows = probe.rows[layer::layers]
                text = float(np.mean([r[1] for r in rows]))
                for k, radius in enumerate(RADII):
                    mass = float(np.mean([r[0][k] for r in rows]))
                    area = probe.windows[k].mean().item()
                    out.append(
                        {
                            "level": level,
                            "layer": layer,
                            "radius": radius,
                            "mass": mass,
                            "area": area,
                            "text": text,
                        }
                    )
    finally:
        flux_module.dispatch_attention_fn = original
    return out


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: mass by layer (mean over noise levels), then by level (mean over layers)."""
    lines = [
        "| weights | | " + " | ".join(f"r = {r}" for r in RADII) + " |",
        "|---|---|" + "---|" * len(RADII),
    ]

    def line(weights: str, title: str, chosen: list[dict[str, Any]], field: str = "mass") -> None:
        values = [np.mean([x[field] for x in chosen if x["radius"] == r]) for r in RADII]
        lines.append(f"| {weights} | {title} | " + " | ".join(f"{v:.3f}" for v in values) + " |")

    line("", "area share (uniform attention)", rows, "area")
    for weights in ("random", "trained"):
        mine = [x for x in rows if x["weights"] == weights]
        line(weights, "all layers and levels", mine)
    for layer in sorted({x["layer"] for x in rows}):
        line("trained", f"layer {layer}", [x for x in mine if x["layer"] == layer])
    for level in LEVELS:
        line("trained", f"noise level {level}", [x for x in mine if x["level"] == level])
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="exported emoji-flux")
    parser.add_argument("--data", type=Path, required=True, help="sprites.npz of demos.training.prepare")
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")
    parser.add_argument("--pixels", type=int, default=256)
    parser.add_argument("--images", type=int, default=4)
    args = parser.parse_args(argv)
    pipeline = FluxPipeline.from_pretrained(args.model, torch_dtype=torch.float32)
    studio = Studio(args.data, "cpu")
    scenes = studio.sampler.draw(args.images, np.random.default_rng(11))
    latents = encode(pipeline.vae, studio.painter.paint(scenes, args.pixels))
    tokens = [token_ids(t, scenes.captions, IMAGE_TOKENS) for t in (pipeline.tokenizer, pipeline.tokenizer_2)]
    encoders = {"text_encoder": pipeline.text_encoder, "text_encoder_2": pipeline.text_encoder_2}
    torch.manual_seed(0)
    random = FluxTransformer2DModel.from_config(pipeline.transformer.config)
    rows = []
    with torch.no_grad():
        for weights, transformer in (("trained", pipeline.transformer), ("random", random)):
            parts = torch.nn.ModuleDict({"transformer": transformer.eval(), **encoders})
            rows += [{"weights": weights} | row for row in measure(parts, latents, tokens)]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    shift = {str(x): noise_level(torch.tensor(x), latents[0, 0].numel() // 4).item() for x in LEVELS}
    args.out.write_text(
        json.dumps({"pixels": args.pixels, "images": args.images, "shifted": shift, "rows": rows})
    )
    print(table(rows))


if __name__ == "__main__":
    main()
