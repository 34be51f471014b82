"""Phase 3, emoji-sd: trains the UNet (v-prediction) on the same latents, and goes on training a copy of
emoji-flux's CLIP encoder, whose per-token states Flux itself never uses."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import torch
from transformers import CLIPTokenizer

from .data import Pool, Studio, drop_captions, validation
from .flux import build_parts as build_flux_parts
from .loop import Loop, LossFn, Stage, autocast, common_arguments, load_averaged, wait_for
from .models import parameters, sd_scheduler, sd_unet
from .text import IMAGE_TOKENS, token_ids
from .vae import encode, load_vae

STAGES = {"full": ((0.55, (128,)), (0.45, (256, 256, 128))), "tiny": ((0.5, (32,)), (0.5, (64, 32)))}
BATCHES = {"full": {128: (192, 30_000), 256: (64, 12_000)}, "tiny": {32: (4, 16), 64: (2, 8)}}


def v_loss(
    parts: torch.nn.ModuleDict,
    signal: torch.Tensor,
    latents: torch.Tensor,
    tokens: list[torch.Tensor],
    level: torch.Tensor,
    generator: torch.Generator,
) -> torch.Tensor:
    """v-prediction loss per sample; ``signal`` (1000,) is the scheduler's alphas_cumprod, ``level`` in 0..1
    picks the step."""
    step = (level * len(signal)).long().clamp(0, len(signal) - 1)
    alpha = signal[step].view(-1, 1, 1, 1)
    noise = torch.randn(latents.shape, device=latents.device, generator=generator)
    mixed = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
    target = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
    with autocast(latents.device):
        text = parts["text_encoder"](tokens[0])[0]
        out = parts["unet"](mixed, step, text, return_dict=False)[0]
    return (out.float() - target).square().mean((1, 2, 3))


def dummy_loss(
    parts: torch.nn.ModuleDict, signal: torch.Tensor, pixels: int, batch: int, device: str
) -> torch.Tensor:
    """The loss of a batch of noise, of the shapes that training has at this resolution."""
    generator = torch.Generator(device).manual_seed(0)
    latents = torch.randn(batch, 8, pixels // 4, pixels // 4, device=device, generator=generator)
    tokens = torch.ones(batch, IMAGE_TOKENS, dtype=torch.long, device=device)
    level = torch.full((batch,), 0.5, device=device)
    return v_loss(parts, signal, latents, [tokens], level, generator).mean()


def build_parts(flux_run: Path, size: str) -> tuple[torch.nn.ModuleDict, CLIPTokenizer]:
    """The UNet and an untrained CLIP encoder of emoji-flux's shape, and its tokenizer."""
    flux, clip, _ = build_flux_parts(flux_run, size)
    return torch.nn.ModuleDict({"unet": sd_unet(size), "text_encoder": flux["text_encoder"]}), clip


def flux_text_encoder(flux_run: Path, size: str) -> torch.nn.Module:
    """The CLIP encoder as emoji-flux left it."""
    flux, _, _ = build_flux_parts(flux_run, size)
    load_averaged(flux, flux_run)
    return flux["text_encoder"]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    common_arguments(parser, minutes=5)
    parser.add_argument("--vae", type=Path, required=True, help="run folder of demos.training.vae")
    parser.add_argument("--flux", type=Path, required=True, help="run folder of demos.training.flux")
    parser.add_argument("--lr", type=float, default=1e-3)
    args = parser.parse_args(argv)
    torch.manual_seed(args.seed)
    studio = Studio(args.data, args.device)
    wait_for([args.flux / "tokenizer_2" / "tokenizer_config.json"], 60 * args.wait)
    parts, clip = build_parts(args.flux, args.size)
    parts.to(args.device)
    signal = sd_scheduler().alphas_cumprod.to(args.device)
    print({k: f"{parameters(m) / 1e6:.2f} M" for k, m in parts.items()}, flush=True)
    if args.size == "full" and torch.device(args.device).type == "cuda":
        parts["unet"].to(memory_format=torch.channels_last)
    loop = Loop(parts, args, lr=args.lr)
    batches, pools = BATCHES[args.size], {}
    if not args.no_compile:
        torch._dynamo.config.recompile_limit = 64
        parts["unet"].compile(dynamic=False)
        loop.warm([partial(dummy_loss, parts, signal, p, batches[p][0], args.device) for p in batches])
    wait_for([args.flux / "checkpoint.safetensors", args.flux / "finished"], 60 * args.wait)
    if not loop.resume():
        parts["text_encoder"].load_state_dict(flux_text_encoder(args.flux, args.size).state_dict())
        loop.restart_average()
    vae = load_vae(args.vae, args.size, args.device)

    def tokenize(captions: list[str]) -> list[torch.Tensor]:
        return [token_ids(clip, captions, IMAGE_TOKENS)]

    empty = [t.to(args.device) for t in tokenize([""])]

    def make_pool(pixels: int, count: int, seed: int, split: str = "train") -> Pool:
        size = max(8, 256 * 128 * 128 // pixels**2)
        return studio.pool(count, pixels, lambda x: encode(vae, x), tokenize, seed, split, batch=size)

    def build(cycle: tuple[int, ...]) -> LossFn:
        for pixels in set(cycle) - set(pools):
            pools[pixels] = make_pool(pixels, batches[pixels][1], args.seed + 1)

        def loss(generator: torch.Generator) -> torch.Tensor:
            pixels = cycle[loop.step % len(cycle)]
            batch = batches[pixels][0]
            latents, tokens = pools[pixels].batch(batch, generator)
            tokens = drop_captions(tokens, empty, generator)
            level = torch.rand(batch, device=latents.device, generator=generator)
            return v_loss(parts, signal, latents, tokens, level, generator).mean()

        return loss

    def validate(stage: Stage) -> dict[str, float]:
        out = {}
        for pixels in sorted({int(word) for word in stage.name.split("+")}):
            # The same counts as in training: another batch size would be another compilation.
            sets = {split: make_pool(pixels, batches[pixels][0], 5, split) for split in ("train", "heldout")}
            losses = validation(sets, lambda *batch: v_loss(parts, signal, *batch))
            out |= {f"{name} {pixels}": value for name, value in losses.items()}
        return out

    def stage(share: float, cycle: tuple[int, ...]) -> Stage:
        name = "+".join(str(p) for p in sorted(set(cycle)))
        return Stage(name, share, tuple(batches[p][0] for p in cycle), lambda: build(cycle))

    loop.run([stage(*values) for values in STAGES[args.size]], validate)


if __name__ == "__main__":
    main()
