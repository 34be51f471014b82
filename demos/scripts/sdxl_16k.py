"""SDXL from 1K to 4K, 8K or 16K: LinFusion's chain, doubling, with less and less noise.

python -m demos.scripts.sdxl_16k --size 4096 --output out/sdxl.png
python -m demos.scripts.sdxl_16k --size 16384 --checkpoint out/run --max-memory 20GiB
"""

from __future__ import annotations

from demos.scripts import arguments, load, said
from vidattn.pipelines import upscale_generate
from vidattn.pipelines.files import save_png


def main(argv: list[str] | None = None) -> None:
    """Generate, print each stage, and save with all settings."""
    more = {"size": 4096, "base": 1024, "steps": 50, "pattern": "sliding", "max_memory": "80GiB"}
    given = arguments(__doc__, "stabilityai/stable-diffusion-xl-base-1.0", "out/sdxl.png", argv, **more)
    pipe, call = load(given.model)
    made = upscale_generate(
        pipe,
        given.prompt,
        given.size,
        given.base,
        strength="auto",  # .4, .3, .2, .1 of the steps
        guidance="latent",  # LinFusion's skip residual
        pattern=given.pattern,
        seed=given.seed,
        checkpoint=given.checkpoint,
        max_memory=given.max_memory,
        callback=said,
        **call | {"num_inference_steps": given.steps},
    )
    given.output.parent.mkdir(parents=True, exist_ok=True)
    save_png(made.images[0], given.output, made.settings)
    print(f"saved {given.output}")


if __name__ == "__main__":
    main()
