"""Phase 1, images: trains the AutoencoderKL shared by emoji-flux and emoji-sd."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from .data import Studio
from .loop import Loop, LossFn, Stage, autocast, common_arguments, load_averaged
from .models import image_vae, parameters

KL_WEIGHT = 1e-4
# Crops are cut from scenes of these sizes, so that sprites of all scales are seen: pixels -> (share, scenes)
POOLS = {
    "full": {128: (0.5, 6000), 256: (0.25, 2000), 512: (0.25, 500)},
    "tiny": {32: (0.5, 16), 64: (0.5, 8)},
}


def reconstruction_loss(out: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """L1 on pixels plus half the L1 on horizontal and vertical differences (..., H, W)."""
    loss = (out - target).abs().mean()
    for axis in (-1, -2):
        loss = loss + 0.25 * (out.diff(dim=axis) - target.diff(dim=axis)).abs().mean()
    return loss


def kl_loss(mean: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
    """Mean KL divergence of a latent number from a standard normal."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()


def load_vae(run: Path, size: str, device: torch.device | str) -> AutoencoderKL:
    """The trained, frozen VAE with its latent statistics in the config, of a run or an exported pipeline."""
    if (run / "model_index.json").exists():
        return AutoencoderKL.from_pretrained(run, subfolder="vae").to(device).eval().requires_grad_(False)
    parts = torch.nn.ModuleDict({"vae": image_vae(size)})
    load_averaged(parts, run)
    stats = json.loads((run / "stats.json").read_text(encoding="utf-8"))
    parts["vae"].register_to_config(
        scaling_factor=stats["scaling_factor"], shift_factor=stats["shift_factor"]
    )
    return parts["vae"].to(device).eval().requires_grad_(False)


@torch.no_grad()
def encode(vae: AutoencoderKL, pixels: torch.Tensor) -> torch.Tensor:
    """(N, 1, 3, H, W) in [-1, 1] -> normalised latents (N, 8, H/4, W/4), as the pipelines scale them."""
    with autocast(pixels.device):
        z = vae.encode(pixels[:, 0]).latent_dist.mode().float()
    return (z - vae.config.shift_factor) * vae.config.scaling_factor


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    common_arguments(parser, minutes=2.2)
    parser.add_argument("--batch", type=int, default=96)
    args = parser.parse_args(argv)
    torch.manual_seed(args.seed)
    full = args.size == "full"
    crop, batch = (64, args.batch) if full else (16, 4)
    studio = Studio(args.data, args.device)
    parts = torch.nn.ModuleDict({"vae": image_vae(args.size)}).to(args.device)
    vae = parts["vae"]
    if torch.device(args.device).type == "cuda":
        parts.to(memory_format=torch.channels_last)
    print(f"VAE {parameters(vae) / 1e6:.2f} M parameters, {len(studio.sampler.meta)} sprites", flush=True)
    loop = Loop(parts, args, lr=2e-3, ema_decay=0.998, warmup=100)
    loop.resume()

    def scene_pixels(count: int, pixels: int) -> torch.Tensor:
        """(count, 3, pixels, pixels) uint8, on the device."""
        scenes = studio.sampler.draw(count, np.random.default_rng([args.seed, pixels]))
        painted = [studio.painter.paint(scenes[i : i + 64], pixels)[:, 0] for i in range(0, count, 64)]
        return torch.cat([((x + 1) * 127.5).round().to(torch.uint8) for x in painted])

    def random_crops(pool: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
        n, _, _, edge = pool.shape
        device, line = pool.device, torch.arange(crop, device=pool.device)
        pick = torch.randint(n, (count,), device=device, generator=generator)
        y, x = torch.randint(edge - crop + 1, (2, count, 1), device=device, generator=generator)
        channel = torch.arange(3, device=device)[None, :, None, None]
        cut = pool[
            pick[:, None, None, None], channel, (y + line)[:, None, :, None], (x + line)[:, None, None, :]
        ]
        return cut.float() / 127.5 - 1

    def forward(x: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        with autocast(args.device):
            mean, logvar = vae.encoder(x).chunk(2, 1)
            mean, logvar = mean.float(), logvar.float().clamp(-20, 10)
            return vae.decoder(mean + (0.5 * logvar).exp() * noise).float(), mean, logvar

    def build() -> LossFn:
        pools = [(share, scene_pixels(count, pixels)) for pixels, (share, count) in POOLS[args.size].items()]

        def loss(generator: torch.Generator) -> torch.Tensor:
            x = torch.cat([random_crops(pool, round(share * batch), generator) for share, pool in pools])
            x = x.contiguous(memory_format=torch.channels_last)
            shape = (len(x), 8, crop // 4, crop // 4)
            out, mean, logvar = forward(x, torch.randn(shape, device=x.device, generator=generator))
            return reconstruction_loss(out, x) + KL_WEIGHT * kl_loss(mean, logvar)

        return loss

    def validate(stage: Stage) -> dict[str, float]:
        """PSNR in dB without sampling noise, on whole scenes."""
        out = {}
        for split in ("train", "heldout"):
            scenes = studio.sampler.draw(64 if full else 8, np.random.default_rng(5), split)
            for size in (128, 256) if full else (32,):
                x = studio.painter.paint(scenes, size)[:, 0]
                with autocast(args.device):
                    y = vae.decode(vae.encode(x).latent_dist.mode()).sample.float()
                error = (y - x).square().mean((1, 2, 3)).clamp_min(1e-8)
                out[f"{split} PSNR {size}"] = round((10 * torch.log10(4 / error)).mean().item(), 2)
        return out

    if loop.run([Stage("vae", 1.0, (batch,), build)], validate):
        with loop.averaged():
            scenes = studio.sampler.draw(512 if full else 16, np.random.default_rng(6))
            z = torch.cat(
                [
                    vae.encode(studio.painter.paint(scenes[i : i + 64], 2 * crop)[:, 0])
                    .latent_dist.mode()
                    .float()
                    for i in range(0, len(scenes), 64)
                ]
            )
        stats = {"shift_factor": z.mean().item(), "scaling_factor": 1 / z.std().item()}
        stats["channel_std"] = z.std((0, 2, 3)).tolist()
        (args.out / "stats.json").write_text(json.dumps(stats), encoding="utf-8")
        print(stats, flush=True)


if __name__ == "__main__":
    main()
