"""What a pattern costs in quality: pictures of emoji-flux with patched attention against dense ones of the
same seed.

    python -m benchmarks.quality --size 512 --prompts 32 --save quality_emoji_flux_512

PSNR and SSIM are means over the prompts, half of which were held out of training. Two anchors say what the
figures mean: dense with another seed is an unrelated picture of the same prompt, dense in bfloat16 against
float32 is rounding noise. The scenes are synthetic, with flat backgrounds, so local attention looks a little
better here than on photographs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import vidattn
from benchmarks import RESULTS
from benchmarks.quality_plot import draw
from demos.training.scenes import SceneSampler
from demos.training.vocabulary import STYLES, concepts
from vidattn import demo_models
from vidattn.bench.record import save, table
from vidattn.metrics import psnr, ssim

# Three densities each, about 0.1, 0.25 and 0.5 of the pairs (dilated windows: less), by side of the token
# grid.
PATTERNS = {
    32: [
        *(f"neighborhood:window={w}" for w in (11, 17, 23)),
        *(f"neighborhood:window={w},stride=4" for w in (12, 16, 24)),
        *(f"neighborhood:window={w},dilation=2" for w in (8, 11, 15)),
        *(f"sliding:base={b}" for b in ("8x14", "12x22", "18x30")),
        *(f"disc:radius={r}" for r in (6, 10.5, 17)),
        *(f"groups:size={s},reach=1" for s in ("1x4x4", "1x6x6", "1x10x10")),
        *(f"groups:size={s},region=cross" for s in ("1x2x2", "1x4x4", "1x8x8")),
    ],
    64: [
        *(f"neighborhood:window={w}" for w in (19, 33, 45)),
        *(f"neighborhood:window={w},stride=8" for w in (20, 32, 44)),
        *(f"neighborhood:window={w},dilation=2" for w in (16, 22, 30)),
        *(f"sliding:base={b}" for b in ("14x24", "24x44", "36x60")),
        *(f"disc:radius={r}" for r in (12, 21, 34)),
        *(f"groups:size={s},reach=1" for s in ("1x8x8", "1x12x12", "1x20x20")),
        *(f"groups:size={s},region=cross" for s in ("1x4x4", "1x8x8", "1x16x16")),
    ],
}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="emoji-flux", help="a shipped demo model (default emoji-flux)")
    parser.add_argument("--size", type=int, default=512, help="pixels a side (default 512)")
    parser.add_argument(
        "--prompts", type=int, default=32, help="how many, half of them held out (default 32)"
    )
    parser.add_argument("--steps", type=int, help="denoising steps (default: the model's)")
    parser.add_argument("--batch", type=int, default=8, help="pictures at a time (default 8)")
    parser.add_argument("--patterns", nargs="+", help="text forms (default: seven kinds at three densities)")
    parser.add_argument(
        "--dtype", default="float32", choices=["float32", "bfloat16"], help="of all but one anchor"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--save", metavar="NAME", help="write benchmarks/results/NAME.json")
    parser.add_argument("--folder", type=Path, default=RESULTS, help="write it there instead")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw PSNR against density")
    return parser.parse_args()


class Pictures:
    """Generates the same prompts and seeds again and again."""

    def __init__(self, arguments: argparse.Namespace, prompts: Sequence[str]) -> None:
        from diffusers import DiffusionPipeline

        self.folder = demo_models.shipped()[arguments.model]
        self.device, self.batch, self.prompts = torch.device(arguments.device), arguments.batch, list(prompts)
        dtype = getattr(torch, arguments.dtype)
        self.pipe = DiffusionPipeline.from_pretrained(str(self.folder.path), dtype=dtype).to(self.device)
        assert self.pipe.transformer.dtype == dtype
        self.pipe.set_progress_bar_config(disable=True)
        self.call = dict(self.folder.defaults) | {"height": arguments.size, "width": arguments.size}
        if arguments.steps:
            self.call["num_inference_steps"] = arguments.steps

    def make(self, seed: int = 0) -> Tensor:
        """(prompts, 3, H, W) in [0, 1] on the CPU."""
        pictures = []
        negative = self.call.get("negative_prompt")
        for first in range(0, len(self.prompts), self.batch):
            prompts = self.prompts[first : first + self.batch]
            # noise from the CPU, by prompt: the same on every device and in every batch
            seeds = [torch.Generator().manual_seed(seed * 100_003 + first + i) for i in range(len(prompts))]
            call = dict(self.call)
            if negative is not None:
                call["negative_prompt"] = [negative] * len(prompts)
            result = self.pipe(prompt=prompts, generator=seeds, output_type="pt", **call)
            pictures.append(result.images.float().cpu())
        return torch.cat(pictures)


def compare(name: str, pictures: Tensor, dense: Tensor, held_out: int) -> dict[str, Any]:
    """A row of the table: means over all prompts, and over the held-out ones alone."""
    noise, likeness = psnr(pictures, dense), ssim(pictures, dense)
    return {
        "pattern": name,
        "PSNR": noise.mean().item(),
        "SSIM": likeness.mean().item(),
        "PSNR held out": noise[-held_out:].mean().item(),
        "SSIM held out": likeness[-held_out:].mean().item(),
    }


def read_prompts(arguments: argparse.Namespace) -> tuple[list[str], int]:
    """The prompts, trained pairs first, and how many at the end were held out."""
    sprites = [{"name": name, "style": style} for name in concepts() for style in STYLES]
    sampler, random = SceneSampler(sprites), np.random.default_rng(2024)
    held_out = arguments.prompts // 2
    seen = sampler.draw(arguments.prompts - held_out, random).captions
    return [*seen, *sampler.draw(held_out, random, "heldout").captions], held_out


@torch.no_grad()
def main() -> None:
    """Print the table, and save it when asked."""
    arguments = parse()
    prompts, held_out = read_prompts(arguments)
    pictures = Pictures(arguments, prompts)
    dense = pictures.make()
    rows: list[dict[str, Any]] = []

    def add(name: str, made: Tensor, density: float | str, share: float | str) -> None:
        row = compare(name, made, dense, held_out)
        rows.append(row | {"density": density, "run density": share})

    side = arguments.size // 8  # one token of the demo models is 8 x 8 pixels
    if not arguments.patterns and side not in PATTERNS:
        raise SystemExit(f"--size {arguments.size}: give --patterns, or one of {[8 * n for n in PATTERNS]}")
    for text in tqdm(arguments.patterns or PATTERNS[side], desc="patterns", file=sys.stderr):
        with vidattn.patched(pictures.pipe, text, min_tokens=0, backend="torch"):
            made = pictures.make()
            share = vidattn.report(pictures.pipe).to_dict()["density"]
        density = vidattn.patterns.from_text(text).density(vidattn.TokenLayout((1, side, side)))
        add(text, made, density, share)
    add("dense, another seed", pictures.make(seed=1), 1.0, 1.0)
    other = "bfloat16" if arguments.dtype == "float32" else "float32"
    pictures.pipe.to(getattr(torch, other))
    add(f"dense, {other}", pictures.make(), 1.0, 1.0)
    print(table(rows, ["pattern", "density", "PSNR", "SSIM", "PSNR held out", "SSIM held out"]))
    if arguments.save:
        options = {
            "size": arguments.size,
            "dtype": arguments.dtype,
            "call": {k: v for k, v in pictures.call.items() if v is not None},
        }
        more = {"options": options, "prompts": prompts, "held_out": held_out}
        path = arguments.folder / f"{arguments.save}.json"
        print("saved", save(path, rows, pictures.device, **more).name)
    if arguments.plot:
        print("drawn", draw(rows, arguments.plot))


if __name__ == "__main__":
    main()
