"""A clip longer than the model was trained for, with radial attention (HunyuanVideo 720p).

python -m demos.scripts.longer_video --frames 253 --output out/long.mp4
"""

from __future__ import annotations

import torch

import vidattn
from demos.scripts import arguments, load
from vidattn.pipelines.files import save_mp4


def main(argv: list[str] | None = None) -> None:
    """Generate with the patch, print what ran, and save."""
    more = {"height": 720, "width": 1280, "frames": 253, "steps": 30, "pattern": "radial", "fps": 24}
    given = arguments(__doc__, "hunyuanvideo-community/HunyuanVideo", "out/long.mp4", argv, **more)
    pipe, call = load(given.model)
    call |= {"height": given.height, "width": given.width, "num_frames": given.frames}
    call |= {"num_inference_steps": given.steps, "generator": torch.Generator().manual_seed(given.seed)}
    pipe.vae.enable_tiling()
    vidattn.patch(pipe, given.pattern, dense_steps=given.steps // 4)
    frames = pipe(given.prompt, output_type="pil", **call).frames[0]
    print(vidattn.report(pipe))
    given.output.parent.mkdir(parents=True, exist_ok=True)
    settings = {k: v for k, v in vars(given).items() if k not in ("output", "checkpoint")}
    save_mp4(frames, given.output, settings, given.fps)
    print(f"saved {given.output}")


if __name__ == "__main__":
    main()
