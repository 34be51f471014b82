"""FLUX at 4K (or 8K) in stages, with the attention of CLEAR or with inward windows.

python -m demos.scripts.flux_4k --prompt "a red fox in the snow" --output out/fox.png
python -m demos.scripts.flux_4k --size 8192 --pattern clear --weights clear_local_16.safetensors
"""

from __future__ import annotations

from demos.scripts import arguments, load, said
from vidattn.pipelines import upscale_generate
from vidattn.pipelines.files import save_png


def main(argv: list[str] | None = None) -> None:
    """Generate, print each stage, and save with all settings."""
    more = {"size": 4096, "base": 1024, "steps": 28, "pattern": "auto", "weights": "", "max_memory": "80GiB"}
    given = arguments(__doc__, "black-forest-labs/FLUX.1-dev", "out/flux.png", argv, **more)
    pipe, call = load(given.model)
    call = {k: v for k, v in call.items() if k not in ("height", "width")}
    made = upscale_generate(
        pipe,
        given.prompt,
        given.size,
        given.base,
        pattern=given.pattern,
        patch_options={"weights": given.weights} if given.weights else {},
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
