"""Writes a trained run as a diffusers pipeline folder: bfloat16 safetensors in files below 16 MB."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, FluxPipeline, StableDiffusionPipeline, WanPipeline

from . import flux, sd, wan
from .loop import load_averaged
from .models import SIZES, flux_scheduler, sd_scheduler, wan_scheduler
from .vae import load_vae
from .wan_vae import load_video_vae

# What `vidattn generate` passes unless told otherwise: the text length of training above all.
DEFAULTS: dict[str, dict[str, object]] = {
    "flux": {"max_sequence_length": 32, "true_cfg_scale": 4.0},
    "sd": {"guidance_scale": 4.0},
    "wan": {"max_sequence_length": 64, "guidance_scale": 4.0, "num_frames": 17},
}
FILE_LIMIT = 16 * 10**6


def flux_pipeline(run: Path, vae_run: Path, size: str) -> FluxPipeline:
    """emoji-flux from its runs, float32."""
    parts, clip, t5 = flux.build_parts(run, size)
    load_averaged(parts, run)
    vae = load_vae(vae_run, size, "cpu")
    return FluxPipeline(scheduler=flux_scheduler(), vae=vae, tokenizer=clip, tokenizer_2=t5, **parts)


def sd_pipeline(run: Path, vae_run: Path, flux_run: Path, size: str) -> StableDiffusionPipeline:
    """emoji-sd from its runs, float32."""
    parts, clip = sd.build_parts(flux_run, size)
    load_averaged(parts, run)
    return StableDiffusionPipeline(
        vae=load_vae(vae_run, size, "cpu"),
        tokenizer=clip,
        scheduler=sd_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **parts,
    )


def wan_pipeline(run: Path, vae_run: Path, size: str) -> WanPipeline:
    """emoji-wan from its runs, float32."""
    parts, tokenizer = wan.build_parts(run, size)
    load_averaged(parts, run)
    vae = load_video_vae(vae_run, size, "cpu")
    return WanPipeline(tokenizer=tokenizer, vae=vae, scheduler=wan_scheduler(), **parts)


def write(name: str, pipeline: DiffusionPipeline, out: Path) -> None:
    """Saves in bfloat16 with the default call arguments, and checks the size of every file."""
    pipeline.to(torch.bfloat16).save_pretrained(out, max_shard_size="12MB")
    _load_text_encoders_in_float32(out)
    defaults = {"height": 256, "width": 256, "num_inference_steps": 20, "negative_prompt": ""} | DEFAULTS[
        name
    ]
    hints = json.dumps({"defaults": defaults}, indent=1) + "\n"
    (out / "vidattn.json").write_text(hints, encoding="utf-8")
    files = {p: p.stat().st_size for p in out.rglob("*") if p.is_file()}
    large = {str(p): n for p, n in files.items() if n >= FILE_LIMIT}
    if large:
        raise RuntimeError(f"files of 16 MB or more: {large}")
    print(f"{out}: {len(files)} files, {sum(files.values()) / 2**20:.1f} MiB")


def _load_text_encoders_in_float32(out: Path) -> None:
    """Without a dtype diffusers loads in float32, transformers in the config's dtype: make them agree."""
    for config in out.glob("text_encoder*/config.json"):
        content = json.loads(config.read_text(encoding="utf-8"))
        config.write_text(json.dumps(content | {"dtype": "float32"}, indent=2) + "\n", encoding="utf-8")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pipeline", choices=("flux", "sd", "wan"))
    parser.add_argument("--run", type=Path, required=True, help="run folder of that phase")
    parser.add_argument("--vae", type=Path, required=True, help="run folder of its VAE")
    parser.add_argument("--flux", type=Path, help="run folder of demos.training.flux (for sd)")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--size", choices=SIZES, default="full")
    args = parser.parse_args(argv)
    if args.pipeline == "flux":
        write(args.pipeline, flux_pipeline(args.run, args.vae, args.size), args.out)
    elif args.pipeline == "wan":
        write(args.pipeline, wan_pipeline(args.run, args.vae, args.size), args.out)
    elif args.flux is None:
        raise SystemExit("--flux: sd needs the run folder of demos.training.flux for its tokenizer")
    else:
        write(args.pipeline, sd_pipeline(args.run, args.vae, args.flux, args.size), args.out)


if __name__ == "__main__":
    main()
