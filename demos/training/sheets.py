"""Sample sheets: 16 prompts, the last 8 held out (marked *), through the plain diffusers pipeline."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image, ImageDraw

from .scenes import SceneSampler
from .text import IMAGE_TOKENS, VIDEO_TOKENS
from .vocabulary import concepts

README_PROMPT = "two 3d bicycle on a yellow background"
SIZE_LIMIT = 600_000  # bytes of a sheet


def prompts(meta: list[dict[str, str]], moving: bool = False, seed: int = 3) -> list[str]:
    """8 captions from the training split (the README's first), then 8 held-out ones."""
    if moving:
        names = concepts(moving_only=True)
        meta = [m for m in meta if m["name"] in names]
    sampler, rng = SceneSampler(meta, moving), np.random.default_rng(seed)
    out = sampler.draw(8, rng).captions + sampler.draw(8, rng, "heldout").captions
    return out if moving else [README_PROMPT, *out[1:]]


@torch.no_grad()
def generate(
    pipeline: DiffusionPipeline,
    texts: list[str],
    pixels: int,
    steps: int,
    guidance: float,
    seed: int,
    frames: int = 17,
) -> list[list[Image.Image]]:
    """Frames of each prompt (one frame for the image pipelines), all from the same seed."""
    out: list[list[Image.Image]] = []
    kind = type(pipeline).__name__
    for i in range(0, len(texts), 4):
        part = texts[i : i + 4]
        options = {
            "prompt": part,
            "negative_prompt": [""] * len(part),
            "height": pixels,
            "width": pixels,
            "num_inference_steps": steps,
            "generator": [torch.Generator().manual_seed(seed + i + j) for j in range(len(part))],
        }
        if kind == "FluxPipeline":
            options |= {"true_cfg_scale": guidance, "max_sequence_length": IMAGE_TOKENS}
        elif kind == "WanPipeline":
            options |= {"max_sequence_length": VIDEO_TOKENS, "num_frames": frames, "output_type": "pil"}
            options["guidance_scale"] = guidance
        else:
            options["guidance_scale"] = guidance
        result = pipeline(**options)
        out += result.frames if kind == "WanPipeline" else [[image] for image in result.images]
    return out


def sheet(
    rows: list[list[Image.Image]], texts: list[str], edge: int, columns: int, held_from: int = 8
) -> Image.Image:
    """Clips or pictures in a grid, each over its prompt; ``edge`` is the size of a frame on the sheet."""
    gap, line = 6, 13
    width = len(rows[0]) * edge + gap
    letters = max(10, width // 6)
    lines = 1 + max(len(t) + 2 for t in texts) // letters
    height = edge + lines * line + gap
    page = Image.new("RGB", (columns * width, -(-len(rows) // columns) * height), "white")
    pen = ImageDraw.Draw(page)
    for i, (frames, text) in enumerate(zip(rows, texts, strict=True)):
        x, y = i % columns * width, i // columns * height
        for k, frame in enumerate(frames):
            page.paste(frame.resize((edge, edge), Image.LANCZOS), (x + k * edge, y))
        text = ("* " if i >= held_from else "") + text
        words, rest = [], text.split()
        while rest:
            words.append(rest.pop(0))
            while rest and len(words[-1]) + 1 + len(rest[0]) <= letters:
                words[-1] += " " + rest.pop(0)
        for k, row in enumerate(words):
            pen.text((x, y + edge + k * line), row, fill="black")
    return page


def save(page: Image.Image, path: Path) -> None:
    """PNG; with 256 colours when it would be too large otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    page.save(path, optimize=True)
    if path.stat().st_size > SIZE_LIMIT:
        page.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(path, optimize=True)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="exported pipeline folder")
    parser.add_argument("--meta", type=Path, required=True, help="sprites.json of demos.training.prepare")
    parser.add_argument("--out", type=Path, required=True, help="PNG to write")
    parser.add_argument("--pixels", type=int, default=256)
    parser.add_argument("--frames", type=int, default=17, help="frames of a clip; 5 of them are shown")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--count", type=int, default=16, help="prompts: half of them trained, half held out")
    parser.add_argument("--edge", type=int, default=None, help="pixels of a frame on the sheet")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prompt-seed", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)
    dtype = torch.bfloat16 if torch.device(args.device).type == "cuda" else torch.float32
    pipeline = DiffusionPipeline.from_pretrained(args.model, torch_dtype=dtype).to(args.device)
    pipeline.set_progress_bar_config(disable=True)
    moving = type(pipeline).__name__ == "WanPipeline"
    texts = prompts(json.loads(args.meta.read_text(encoding="utf-8")), moving, args.prompt_seed)
    half = args.count // 2
    texts = texts[:half] + texts[8 : 8 + half]
    rows = generate(pipeline, texts, args.pixels, args.steps, args.guidance, args.seed, args.frames)
    if moving:
        rows = [[row[k] for k in np.linspace(0, len(row) - 1, 5).round().astype(int)] for row in rows]
    save(
        sheet(rows, texts, args.edge or (96 if moving else 176), 2 if moving else min(8, half), half),
        args.out,
    )
    print(args.out)


if __name__ == "__main__":
    main()
