"""A sheet: the trained size, the stages above it, and the model asked for the large size at once.

python -m demos.scripts.upscale_sheet --prompt "noto cat on a red background" --output docs/images/upscale.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from demos.scripts import load
from vidattn.pipelines import upscale_generate


def main(argv: list[str] | None = None) -> None:
    """Generate in stages and at once, and save all pictures side by side."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="emoji-flux", help="demo model, local folder or hub id")
    parser.add_argument("--prompt", default="noto cat on a red background")
    parser.add_argument("--base", type=int, default=256)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--plain-steps", type=int, default=8, help="steps of the one at once, which is dense")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cell", type=int, default=512, help="pixels of one picture on the sheet")
    parser.add_argument("--output", type=Path, default=Path("out/upscale.png"))
    arguments = parser.parse_args(argv)

    pipe, call = load(arguments.model)
    call = {k: v for k, v in call.items() if k not in ("height", "width")}
    shown = []
    made = upscale_generate(
        pipe,
        arguments.prompt,
        arguments.size,
        arguments.base,
        seed=arguments.seed,
        callback=lambda stage, index, total, images: shown.append(
            (f"stage {index + 1}, {stage.height} px, {stage.seconds:.0f} s", images[0])
        ),
        **call | {"num_inference_steps": arguments.steps},
    )
    print("\n".join(f"{s.height} px: {s.steps} steps, density {s.density}" for s in made.stages))
    generator = torch.Generator().manual_seed(arguments.seed)
    size = {"height": arguments.size, "width": arguments.size, "num_inference_steps": arguments.plain_steps}
    plain = pipe(arguments.prompt, generator=generator, **call | size).images[0]
    shown.append((f"at once, {arguments.size} px, dense", plain))
    save(shown, arguments.cell, arguments.output)


def save(shown: list[tuple[str, Image.Image]], cell: int, path: Path) -> None:
    """All pictures in a row, each under its title."""
    sheet = Image.new("RGB", (len(shown) * (cell + 8) - 8, cell + 20), "white")
    for i, (title, picture) in enumerate(shown):
        sheet.paste(picture.resize((cell, cell)), (i * (cell + 8), 20))
        ImageDraw.Draw(sheet).text((i * (cell + 8) + 2, 4), title, fill="black")
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, optimize=True)
    print(f"saved {path}")


if __name__ == "__main__":
    main()
