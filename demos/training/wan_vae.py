"""Phase 4, clips: trains the causal video VAE (AutoencoderKLWan) of emoji-wan."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan

from .data import Studio
from .loop import Loop, LossFn, Stage, autocast, common_arguments, load_averaged
from .models import parameters, video_vae
from .vae import KL_WEIGHT, kl_loss, reconstruction_loss


def load_video_vae(run: Path, size: str, device: torch.device | str) -> AutoencoderKLWan:
    """The trained, frozen VAE with the statistics of its latent channels in the config."""
    parts = torch.nn.ModuleDict({"vae": video_vae(size)})
    load_averaged(parts, run)
    stats = json.loads((run / "stats.json").read_text(encoding="utf-8"))
    parts["vae"].register_to_config(latents_mean=stats["latents_mean"], latents_std=stats["latents_std"])
    return parts["vae"].to(device).eval().requires_grad_(False)


@torch.no_grad()
def encode_clips(vae: AutoencoderKLWan, pixels: torch.Tensor) -> torch.Tensor:
    """(N, T, 3, H, W) in [-1, 1] -> normalised latents (N, 8, 1 + (T-1)/2, H/4, W/4)."""
    with autocast(pixels.device):
        z = vae.encode(pixels.transpose(1, 2)).latent_dist.mode().float()
    mean, std = (
        torch.tensor(v, device=z.device).view(1, -1, 1, 1, 1)
        for v in (vae.config.latents_mean, vae.config.latents_std)
    )
    return (z - mean) / std


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    common_arguments(parser, minutes=2.5)
    parser.add_argument("--batch", type=int, default=12)
    args = parser.parse_args(argv)
    torch.manual_seed(args.seed)
    full = args.size == "full"
    pixels, frames, batch = (128, 9, args.batch) if full else (32, 5, 2)
    studio = Studio(args.data, args.device, moving=True)
    parts = torch.nn.ModuleDict({"vae": video_vae(args.size)}).to(args.device)
    vae = parts["vae"]
    print(
        f"video VAE {parameters(vae) / 1e6:.2f} M parameters, {len(studio.sampler.meta)} sprites", flush=True
    )
    loop = Loop(parts, args, lr=1.5e-3, ema_decay=0.998, warmup=100)
    loop.resume()

    def clips(rng: np.random.Generator, count: int, split: str = "train") -> torch.Tensor:
        return studio.painter.paint(studio.sampler.draw(count, rng, split), pixels, frames).transpose(1, 2)

    def build() -> LossFn:
        def loss(generator: torch.Generator) -> torch.Tensor:
            x = clips(np.random.default_rng([loop.step, 2]), batch)
            with autocast(args.device):
                moments = vae.encode(x).latent_dist
                mean, logvar = moments.mean.float(), moments.logvar.float().clamp(-20, 10)
                noise = torch.randn(mean.shape, device=x.device, generator=generator)
                out = vae.decode(mean + (0.5 * logvar).exp() * noise).sample.float()
            # Differences over time too: flicker is what a viewer sees first.
            motion = (out.diff(dim=2) - x.diff(dim=2)).abs().mean()
            return reconstruction_loss(out, x) + 0.25 * motion + KL_WEIGHT * kl_loss(mean, logvar)

        return loss

    def validate(stage: Stage) -> dict[str, float]:
        """PSNR in dB without sampling noise."""
        out = {}
        for split in ("train", "heldout"):
            x = clips(np.random.default_rng(5), batch, split)
            with autocast(args.device):
                y = vae.decode(vae.encode(x).latent_dist.mode()).sample.float()
            error = (y - x).square().mean((1, 2, 3, 4)).clamp_min(1e-8)
            out[f"{split} PSNR {pixels}"] = round((10 * torch.log10(4 / error)).mean().item(), 2)
        return out

    if loop.run([Stage("wan_vae", 1.0, (batch,), build)], validate):
        rng = np.random.default_rng(6)
        with loop.averaged(), autocast(args.device):
            z = torch.cat([vae.encode(clips(rng, batch)).latent_dist.mode().float() for _ in range(8)])
        axes = (0, 2, 3, 4)
        stats = {"latents_mean": z.mean(axes).tolist(), "latents_std": z.std(axes).tolist()}
        (args.out / "stats.json").write_text(json.dumps(stats), encoding="utf-8")
        print(stats, flush=True)


if __name__ == "__main__":
    main()
