"""One patch, three sizes, two prompts at a time: nothing is patched again in between.

python -m demos.scripts.one_patch_three_sizes --model emoji-flux --output out/sizes.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image

import vidattn
from vidattn import demo_models

PROMPTS = ["noto cat on a red background", "two 3d bicycle on a yellow background"]


def main(argv: list[str] | None = None) -> None:
    """Generate, print the report of each size, and save all pictures on one sheet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="emoji-flux", help="demo model or folder")
    parser.add_argument("--pattern", default="neighborhood")
    parser.add_argument("--sizes", nargs="+", default=["256x256", "384x512", "512x512"])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument(
        "--min-tokens", type=int, help="least tokens for sparse attention (default: where it pays)"
    )
    parser.add_argument("--output", type=Path, default=Path("out/sizes.png"))
    arguments = parser.parse_args(argv)
    least = arguments.min_tokens

    from diffusers import DiffusionPipeline

    model = demo_models.shipped().get(arguments.model) or demo_models.read(Path(arguments.model))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipe = DiffusionPipeline.from_pretrained(str(model.path), local_files_only=True).to(device)
    vidattn.patch(pipe, arguments.pattern, min_tokens="auto" if least is None else least)

    pictures = []
    for size in arguments.sizes:
        height, width = (int(part) for part in size.split("x"))
        options = {**model.defaults, "height": height, "width": width, "num_inference_steps": arguments.steps}
        if "negative_prompt" in options:
            options["negative_prompt"] = [options["negative_prompt"]] * len(PROMPTS)
        generator = torch.Generator().manual_seed(0)
        pictures += pipe(PROMPTS, generator=generator, **options).images
        print(f"{size} (height x width)\n{vidattn.report(pipe)}\n")
    _save(pictures, arguments.output)


def _save(pictures: list[Image.Image], path: Path) -> None:
    sheet = Image.new("RGB", (sum(p.width for p in pictures), max(p.height for p in pictures)), "white")
    x = 0
    for picture in pictures:
        sheet.paste(picture, (x, 0))
        x += picture.width
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
    print(f"saved {path}")


if __name__ == "__main__":
    main()
