"""Phase 2, emoji-flux: trains the Flux transformer and both text encoders by flow matching."""

from __future__ import annotations

import argparse
import math
import shutil
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from .data import Pool, Studio, drop_captions, validation
from .loop import Loop, LossFn, Stage, autocast, common_arguments, wait_for
from .models import TEXT, flux_transformer, parameters
from .text import IMAGE_TOKENS, clip_encoder, clip_tokenizer, t5_encoder, t5_tokenizer, token_ids
from .vae import encode, load_vae

# Share of the phase, and the resolutions that the steps of a stage go round.
STAGES = {
    "full": ((0.38, (128,)), (0.37, (256, 256, 128)), (0.25, (512, 256, 512, 128))),
    "tiny": ((0.5, (32,)), (0.5, (64, 32))),
}
# Pixels: (batch, scenes in the pool)
BATCHES = {
    "full": {128: (256, 30_000), 256: (96, 12_000), 512: (24, 2_000)},
    "tiny": {32: (4, 16), 64: (2, 8)},
}


def noise_level(raw: torch.Tensor, tokens: int) -> torch.Tensor:
    """FlowMatchEulerDiscreteScheduler's dynamic shift of noise levels in 0..1 for so many image tokens."""
    mu = 0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256)
    return math.exp(mu) / (math.exp(mu) + (1 / raw - 1))


def position_ids(height: int, width: int, device: torch.device | str) -> torch.Tensor:
    """(height * width, 3): 0, row, column, as FluxPipeline numbers the packed latents."""
    ids = torch.zeros(height, width, 3, device=device)
    ids[..., 1] += torch.arange(height, device=device)[:, None]
    ids[..., 2] += torch.arange(width, device=device)[None]
    return ids.view(-1, 3)


def pack(latents: torch.Tensor) -> torch.Tensor:
    """(N, 8, H, W) -> (N, H/2 * W/2, 32), in FluxPipeline's channel order."""
    return F.pixel_unshuffle(latents, 2).flatten(2).transpose(1, 2)


def velocity(
    parts: torch.nn.ModuleDict, x: torch.Tensor, level: torch.Tensor, tokens: list[torch.Tensor]
) -> torch.Tensor:
    """Predicted velocity for square packed latents ``x`` (N, L, 32), with the text as FluxPipeline feeds it:
    CLIP's pooled state, and T5 without a padding mask."""
    side = math.isqrt(x.shape[1])
    with autocast(x.device):
        return parts["transformer"](
            hidden_states=x,
            timestep=level,
            pooled_projections=parts["text_encoder"](tokens[0]).pooler_output,
            encoder_hidden_states=parts["text_encoder_2"](tokens[1])[0],
            txt_ids=torch.zeros(tokens[1].shape[1], 3, device=x.device),
            img_ids=position_ids(side, side, x.device),
            return_dict=False,
        )[0].float()


def flow_loss(
    parts: torch.nn.ModuleDict,
    latents: torch.Tensor,
    tokens: list[torch.Tensor],
    raw: torch.Tensor,
    generator: torch.Generator,
) -> torch.Tensor:
    """Flow-matching loss per sample at raw (unshifted) noise levels (N,)."""
    x0 = pack(latents)
    level = noise_level(raw, x0.shape[1])
    noise = torch.randn(x0.shape, device=x0.device, generator=generator)
    mixed = torch.lerp(x0, noise, level.view(-1, 1, 1))
    return (velocity(parts, mixed, level, tokens) - (noise - x0)).square().mean((1, 2))


def dummy_loss(parts: torch.nn.ModuleDict, pixels: int, batch: int, device: str) -> torch.Tensor:
    """The loss of a batch of noise, of the shapes that training has at this resolution."""
    generator = torch.Generator(device).manual_seed(0)
    latents = torch.randn(batch, 8, pixels // 4, pixels // 4, device=device, generator=generator)
    tokens = torch.ones(batch, IMAGE_TOKENS, dtype=torch.long, device=device)
    raw = torch.full((batch,), 0.5, device=device)
    return flow_loss(parts, latents, [tokens, tokens], raw, generator).mean()


def start_from(parts: torch.nn.ModuleDict, model: Path) -> None:
    """Fills ``parts`` with the weights of an exported pipeline of the same shape."""
    for name, module in parts.items():
        weights = {}
        for file in sorted((model / name).glob("*.safetensors")):
            weights |= load_file(file)
        module.load_state_dict(weights, strict=False)
        missing = {n for n, _ in module.named_parameters()} - set(weights)
        if missing - {"encoder.embed_tokens.weight"}:
            raise SystemExit(f"--init: {model / name} lacks {sorted(missing)[:3]}")


def build_parts(
    run: Path, size: str, corpus: list[str] | None = None
) -> tuple[torch.nn.ModuleDict, object, object]:
    """Networks (module names as in FluxPipeline) and both tokenizers; trains the tokenizers on ``corpus``, or
    loads those of an earlier call."""
    from transformers import CLIPTokenizer, T5Tokenizer

    if not (run / "tokenizer_2").exists():
        if corpus is None:
            raise SystemExit(f"{run}: no tokenizers; run demos.training.flux first")
        clip_tokenizer(corpus).save_pretrained(run / "tokenizer")
        t5_tokenizer(corpus).save_pretrained(run / "tokenizer_2")
    clip, t5 = (
        CLIPTokenizer.from_pretrained(run / "tokenizer"),
        T5Tokenizer.from_pretrained(run / "tokenizer_2"),
    )
    parts = {
        "transformer": flux_transformer(size),
        "text_encoder": clip_encoder(clip, **TEXT[size]),
        "text_encoder_2": t5_encoder(t5, **TEXT[size]),
    }
    return torch.nn.ModuleDict(parts), clip, t5


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    common_arguments(parser, minutes=9)
    parser.add_argument(
        "--vae", type=Path, required=True, help="run folder of demos.training.vae, or a pipeline"
    )
    parser.add_argument(
        "--init", type=Path, help="exported emoji-flux to start from instead of random weights"
    )
    parser.add_argument("--shares", default=None, help="parts of the time for the stages, e.g. 0.4,0.4,0.2")
    parser.add_argument("--warm", default=None, help="resolutions to compile before the data, default all")
    parser.add_argument("--warm-only", action="store_true", help="fill the compiler's cache and exit")
    parser.add_argument("--lr", type=float, default=1.5e-3)
    args = parser.parse_args(argv)
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    studio = Studio(args.data, args.device)
    if args.init and not (args.out / "tokenizer_2").exists():
        for name in ("tokenizer", "tokenizer_2"):
            shutil.copytree(args.init / name, args.out / name, dirs_exist_ok=True)
    parts, clip, t5 = build_parts(args.out, args.size, studio.corpus(20_000 if args.size == "full" else 200))
    if args.init:
        start_from(parts, args.init)
    parts.to(args.device)
    print({k: f"{parameters(m) / 1e6:.2f} M" for k, m in parts.items()}, flush=True)
    loop = Loop(parts, args, lr=args.lr)
    loop.resume()
    batches, pools = BATCHES[args.size], {}
    if not args.no_compile:
        torch._dynamo.config.recompile_limit = 64
        parts["transformer"].compile_repeated_blocks(fullgraph=True, dynamic=False)
        warm = [int(p) for p in args.warm.split(",")] if args.warm else list(batches)
        loop.warm([partial(dummy_loss, parts, pixels, batches[pixels][0], args.device) for pixels in warm])
    if args.warm_only:
        return
    if not (args.vae / "model_index.json").exists():
        wait_for([args.vae / "stats.json"], 60 * args.wait)
    vae = load_vae(args.vae, args.size, args.device)

    def tokenize(captions: list[str]) -> list[torch.Tensor]:
        return [token_ids(clip, captions, IMAGE_TOKENS), token_ids(t5, captions, IMAGE_TOKENS)]

    empty = [t.to(args.device) for t in tokenize([""])]

    def make_pool(pixels: int, count: int, seed: int, split: str = "train") -> Pool:
        size = max(8, 256 * 128 * 128 // pixels**2)
        return studio.pool(count, pixels, lambda x: encode(vae, x), tokenize, seed, split, batch=size)

    def build(cycle: tuple[int, ...]) -> LossFn:
        for pixels in set(cycle) - set(pools):
            pools[pixels] = make_pool(pixels, batches[pixels][1], args.seed)

        def loss(generator: torch.Generator) -> torch.Tensor:
            pixels = cycle[loop.step % len(cycle)]
            batch = batches[pixels][0]
            latents, tokens = pools[pixels].batch(batch, generator)
            tokens = drop_captions(tokens, empty, generator)
            raw = torch.sigmoid(torch.randn(batch, device=latents.device, generator=generator))
            return flow_loss(parts, latents, tokens, raw, generator).mean()

        return loss

    def validate(stage: Stage) -> dict[str, float]:
        out = {}
        for pixels in sorted({int(word) for word in stage.name.split("+")}):
            # The same counts as in training: another batch size would be another compilation.
            sets = {split: make_pool(pixels, batches[pixels][0], 5, split) for split in ("train", "heldout")}
            losses = validation(sets, lambda *batch: flow_loss(parts, *batch))
            out |= {f"{name} {pixels}": value for name, value in losses.items()}
        return out

    def stage(share: float, cycle: tuple[int, ...]) -> Stage:
        name = "+".join(str(p) for p in sorted(set(cycle)))
        return Stage(name, share, tuple(batches[p][0] for p in cycle), lambda: build(cycle))

    stages = STAGES[args.size]
    shares = [float(x) for x in args.shares.split(",")] if args.shares else [share for share, _ in stages]
    if len(shares) != len(stages):
        raise SystemExit(f"--shares: {len(stages)} numbers expected, got {args.shares!r}")
    loop.run([stage(share, cycle) for share, (_, cycle) in zip(shares, stages, strict=True)], validate)


if __name__ == "__main__":
    main()
