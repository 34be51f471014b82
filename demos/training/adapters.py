"""Adapters of the demo pipelines: captions to distil with, and how much quality an adapter brings back.

The captions need no sprites: a pipeline that is its own teacher makes its own pictures.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import vidattn
from vidattn import demo_models, metrics

from .vocabulary import BACKGROUNDS, COLOUR_NAMES, NUMBERS, STYLES, concepts, held_out


def captions(count: int, seed: int, unseen: bool = False) -> list[str]:
    """Captions of one to four equal subjects; with ``unseen`` only pairs of concept and first colour that no
    demo model was trained on, without it none of them."""
    rng = np.random.default_rng(seed)
    names, made = list(concepts()), []
    while len(made) < count:
        name = names[rng.integers(len(names))]
        first, second = rng.choice(COLOUR_NAMES, 2, replace=False)
        if held_out(name, str(first)) != unseen:
            continue
        ground = BACKGROUNDS[str(rng.choice(list(BACKGROUNDS)))].format(a=first, b=second)
        subject = f"{rng.choice(STYLES)} {name}"
        if rng.random() < 0.4:
            subject = f"{NUMBERS[int(rng.integers(2, 5))]} {subject}"
        made.append(f"{subject} on {ground}")
    return made


def draw(pipe: Any, texts: list[str], call: dict[str, Any], seed: int) -> Tensor:
    """(prompts, 3, H, W) in [0, 1], each from noise of its own."""
    pictures = []
    for number, text in enumerate(texts):
        generator = torch.Generator().manual_seed(seed + number)
        image = pipe(text, generator=generator, output_type="np", **call).images[0]
        pictures.append(torch.from_numpy(image).permute(2, 0, 1))
    return torch.stack(pictures)


def measure(pipe: Any, recipe: Path, texts: list[str], call: dict[str, Any], seed: int) -> dict[str, Any]:
    """PSNR and SSIM against the unpatched pipeline, means over the prompts, of the recipe's pattern without
    its weights and with them."""
    dense = draw(pipe, texts, call, seed)
    untrained = json.loads(recipe.read_text(encoding="utf-8"))
    pattern = untrained.pop("pattern")
    untrained.pop("weights")
    options = {key: tuple(v) if isinstance(v, list) else v for key, v in untrained.items()}
    found: dict[str, Any] = {"prompts": len(texts)}
    for name, what, given in (("before", pattern, options), ("after", recipe, {})):
        with vidattn.patched(pipe, what, **given | {"min_tokens": 0}):  # not dense where that is as fast
            pictures = draw(pipe, texts, call, seed)
        found[name] = {
            "psnr": round(float(metrics.psnr(pictures, dense).mean()), 3),
            "ssim": round(float(metrics.ssim(pictures, dense).mean()), 4),
        }
    return found


def ship(run: Path, out: Path, figures: Path) -> None:
    """Copy what a run made: weights in float16, the recipe, and how it was made and what it reached."""
    out.mkdir(parents=True, exist_ok=True)
    with safe_open(str(run / "checkpoint.safetensors"), "pt") as opened:
        settings = json.loads(opened.metadata()["settings"])
    tensors = {name: tensor.half() for name, tensor in load_file(run / "adapter.safetensors").items()}
    save_file(tensors, out / "adapter.safetensors")
    (out / "recipe.json").write_text((run / "recipe.json").read_text(encoding="utf-8"), encoding="utf-8")
    prompts = json.loads((run / "data" / "about.json").read_text(encoding="utf-8"))["prompts"]
    settings["prompts"] = f"{len(prompts)} captions of `demos.training.adapters prompts`"
    about = {"settings": settings, "measured": json.loads(figures.read_text(encoding="utf-8"))}
    (out / "about.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def main(argv: list[str] | None = None) -> None:
    """``prompts`` writes captions, ``measure`` prints figures, and ``ship`` makes the adapter's folder in the
    repository."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    write = commands.add_parser("prompts", help="a file of captions, one a line")
    write.add_argument("--out", type=Path, required=True)
    compare = commands.add_parser("measure", help="an adapter's quality before and after distillation")
    compare.add_argument("--model", default="emoji-flux", help="demo model")
    compare.add_argument("--recipe", type=Path, required=True, help="recipe.json of vidattn distill")
    compare.add_argument("--size", type=int, default=128, help="pixels")
    compare.add_argument("--steps", type=int, default=10, help="of denoising")
    compare.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    copy = commands.add_parser("ship", help="the folder of an adapter in the repository")
    copy.add_argument("--run", type=Path, required=True, help="folder of vidattn distill")
    copy.add_argument("--figures", type=Path, required=True, help="what measure printed")
    copy.add_argument("--out", type=Path, required=True)
    for command in (write, compare):
        command.add_argument("--count", type=int, default=16)
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--unseen", action="store_true", help="only pairs that were never trained on")
    args = parser.parse_args(argv)
    if args.command == "ship":
        return ship(args.run, args.out, args.figures)
    texts = captions(args.count, args.seed, args.unseen)
    if args.command == "prompts":
        args.out.write_text("\n".join(texts) + "\n", encoding="utf-8")
        return
    from diffusers import DiffusionPipeline

    folder = demo_models.shipped()[args.model]
    pipe = DiffusionPipeline.from_pretrained(str(folder.path)).to(args.device)
    pipe.set_progress_bar_config(disable=True)
    call = folder.defaults | {"height": args.size, "width": args.size, "num_inference_steps": args.steps}
    print(json.dumps(measure(pipe, args.recipe, texts, call, 1000 + args.seed), indent=1))


if __name__ == "__main__":
    main()
