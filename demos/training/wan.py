"""Phase 5, emoji-wan: trains the Wan transformer and its text encoder by flow matching on moving sprites."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import T5Tokenizer

from .data import Pool, Studio, drop_captions, validation
from .loop import Loop, LossFn, Stage, autocast, common_arguments
from .models import TEXT, parameters, wan_transformer
from .text import VIDEO_TOKENS, t5_encoder, t5_tokenizer, token_ids
from .wan_vae import encode_clips, load_video_vae

SHIFT = 3.0  # of the noise levels, as in the scheduler
# (frames, pixels), share of the phase, batch, clips in the pool
STAGES = {
    "full": (((9, 128), 0.62, 64, 20_000), ((17, 256), 0.38, 8, 1_500)),
    "tiny": (((5, 32), 0.5, 2, 8), ((5, 64), 0.5, 1, 4)),
}


def flow_loss(
    parts: torch.nn.ModuleDict,
    latents: torch.Tensor,
    tokens: list[torch.Tensor],
    raw: torch.Tensor,
    generator: torch.Generator,
) -> torch.Tensor:
    """Flow-matching loss per clip, latents (N, 8, T, H, W), at raw (unshifted) noise levels (N,). Text as
    WanPipeline feeds it: encoded with a mask, padding set to zero."""
    level = SHIFT * raw / (1 + (SHIFT - 1) * raw)
    noise = torch.randn(latents.shape, device=latents.device, generator=generator)
    mixed = torch.lerp(latents, noise, level.view(-1, 1, 1, 1, 1))
    mask = tokens[0] != 0
    with autocast(latents.device):
        text = parts["text_encoder"](tokens[0], mask.long()).last_hidden_state * mask[..., None]
        out = parts["transformer"](
            hidden_states=mixed, timestep=1000 * level, encoder_hidden_states=text, return_dict=False
        )[0]
    return (out.float() - (noise - latents)).square().mean((1, 2, 3, 4))


def build_parts(
    run: Path, size: str, corpus: list[str] | None = None
) -> tuple[torch.nn.ModuleDict, T5Tokenizer]:
    """Networks (module names as in WanPipeline) and the tokenizer, trained on ``corpus`` or loaded."""
    if not (run / "tokenizer").exists():
        if corpus is None:
            raise SystemExit(f"{run}: no tokenizer; run demos.training.wan first")
        t5_tokenizer(corpus, VIDEO_TOKENS).save_pretrained(run / "tokenizer")
    tokenizer = T5Tokenizer.from_pretrained(run / "tokenizer")
    encoder = t5_encoder(tokenizer, **TEXT[size], multilingual=True)
    return torch.nn.ModuleDict({"transformer": wan_transformer(size), "text_encoder": encoder}), tokenizer


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    common_arguments(parser, minutes=6)
    parser.add_argument("--vae", type=Path, required=True, help="run folder of demos.training.wan_vae")
    parser.add_argument("--lr", type=float, default=1e-3)
    args = parser.parse_args(argv)
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    studio = Studio(args.data, args.device, moving=True)
    parts, tokenizer = build_parts(args.out, args.size, studio.corpus(20_000 if args.size == "full" else 200))
    parts.to(args.device)
    vae = load_video_vae(args.vae, args.size, args.device)
    print(
        {k: f"{parameters(m) / 1e6:.2f} M" for k, m in parts.items()},
        len(studio.sampler.meta),
        "sprites",
        flush=True,
    )
    loop = Loop(parts, args, lr=args.lr)
    loop.resume()
    if not args.no_compile:
        torch._dynamo.config.recompile_limit = 64
        parts["transformer"].compile_repeated_blocks(fullgraph=True, dynamic=False)

    def tokenize(captions: list[str]) -> list[torch.Tensor]:
        return [token_ids(tokenizer, captions, VIDEO_TOKENS)]

    empty = [t.to(args.device) for t in tokenize([""])]

    def make_pool(shape: tuple[int, int], count: int, seed: int, split: str = "train") -> Pool:
        frames, pixels = shape
        size = max(2, 48 * 9 * 128 * 128 // (frames * pixels**2))
        return studio.pool(count, pixels, lambda x: encode_clips(vae, x), tokenize, seed, split, frames, size)

    def build(shape: tuple[int, int], batch: int, count: int) -> LossFn:
        pool = make_pool(shape, count, args.seed)

        def loss(generator: torch.Generator) -> torch.Tensor:
            latents, tokens = pool.batch(batch, generator)
            tokens = drop_captions(tokens, empty, generator)
            raw = torch.sigmoid(torch.randn(batch, device=latents.device, generator=generator))
            return flow_loss(parts, latents, tokens, raw, generator).mean()

        return loss

    stages = {f"{f}x{p}": ((f, p), share, batch, count) for (f, p), share, batch, count in STAGES[args.size]}

    def validate(stage: Stage) -> dict[str, float]:
        shape, _, batch, _ = stages[stage.name]
        sets = {split: make_pool(shape, batch, 5, split) for split in ("train", "heldout")}
        return validation(sets, lambda *values: flow_loss(parts, *values))

    def stage(name: str, shape: tuple[int, int], share: float, batch: int, count: int) -> Stage:
        return Stage(name, share, (batch,), lambda: build(shape, batch, count))

    loop.run([stage(name, *values) for name, values in stages.items()], validate)


if __name__ == "__main__":
    main()
