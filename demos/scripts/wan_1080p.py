"""Wan 2.1 1.3B at 1088x1920: a clip of the trained size, enlarged with two attention paths (FreeSwim).

python -m demos.scripts.wan_1080p --prompt "a red fox runs through snow" --output out/fox.mp4
"""

from __future__ import annotations

from demos.scripts import arguments, load, said
from vidattn.pipelines import dual_path_video
from vidattn.pipelines.files import save_mp4


def main(argv: list[str] | None = None) -> None:
    """Generate, print each stage, and save with all settings in a .json beside the clip."""
    more = {"height": 1088, "width": 1920, "frames": 81, "steps": 50, "refresh": 2, "cache": "auto"}
    more |= {"cache_memory": "20GiB", "fps": 16, "base_height": 480, "base_width": 832}
    given = arguments(__doc__, "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "out/wan.mp4", argv, **more)
    pipe, call = load(given.model)
    call = {k: v for k, v in call.items() if k not in ("height", "width", "num_frames")}
    made = dual_path_video(
        pipe,
        given.prompt,
        given.height,
        given.width,
        given.frames,
        given.refresh,
        base=(given.base_height, given.base_width),
        cache=given.cache,
        cache_memory=given.cache_memory,
        seed=given.seed,
        checkpoint=given.checkpoint,
        callback=said,
        **call | {"num_inference_steps": given.steps},
    )
    given.output.parent.mkdir(parents=True, exist_ok=True)
    save_mp4(made.images[0], given.output, made.settings, given.fps)
    print(f"saved {given.output}")


if __name__ == "__main__":
    main()
