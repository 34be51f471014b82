"""``vidattn distill``: teach a pipeline with sparse or linear attention to do what it did with its own."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from vidattn.cli.arguments import BadArgument, number, positive, size, whole

_EXAMPLES = """\
examples:
  vidattn distill --model emoji-flux --pattern clear:radius=4 --prompts prompts.txt --size 128 --output run
  vidattn distill --model path/to/sd15 --pattern linfusion --images photos --size 512 --output run \\
      --precision bf16 --gradient-checkpointing --batch 8 --steps 20000
  accelerate launch -m vidattn.cli distill --model path/to/flux --pattern clear:radius=8 ...
  vidattn generate --model emoji-flux --prompt "noto cat" --pattern run/recipe.json

The teacher is the same model with its own attention. Give prompts, one a line, and it makes the training
pictures itself; or a folder of pictures with captions (picture.txt beside picture.png, or metadata.jsonl).
The same command goes on where a run was interrupted. The folder gets adapter.safetensors and recipe.json,
log.jsonl (and tensorboard's events where it is installed), validation/*.png, and the checkpoint.
"""


def add_parser(commands: Any) -> None:
    """Add this command to the command line's subparsers."""
    parser = commands.add_parser(
        "distill",
        help="train the weights of sparse or linear attention",
        description="Teach a pipeline with another attention to do what it did with its own.",
        epilog=_EXAMPLES,
    )
    _add_what(parser)
    _add_losses(parser)
    _add_training(parser)
    parser.set_defaults(run=run)


def _add_what(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", default="emoji-flux", help="folder, hub id or demo model (default emoji-flux)")
    add("--pattern", required=True, help="preset or text form, as clear:radius=8 or linfusion")
    add("--output", type=Path, required=True, help="folder of the run")
    add("--prompts", type=Path, help="file of prompts, one a line, for pictures that the teacher makes")
    add("--images", type=Path, help="folder of pictures with captions")
    add("--samples", type=positive, default=256, help="pictures that the teacher makes (default 256)")
    add("--size", type=size, default=(512, 512), help="pixels, 512 or 384x512 (height x width)")
    add("--frames", type=positive, default=17, help="of clips, for video models (default 17)")
    add("--sample-steps", type=positive, help="denoising steps of the teacher's and validation pictures")
    add("--dense-layers", default="", help="numbers or name globs of layers that stay as they are: 0,-1")
    add("--train", choices=("attention", "lora", "modules"), default="attention",
        help="the replaced layers' projections, low-rank additions to them, or only new modules")  # fmt: skip
    add("--rank", type=positive, default=16, help="of the LoRA (default 16)")
    add("--initial", type=Path, help="weights to start from (.safetensors)")
    add("--device", default="auto", help="cpu or cuda; auto takes a GPU where there is one")
    add("--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="of the frozen weights")


def _add_losses(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--task-weight", type=number, default=1.0, help="noise or flow matching loss (default 1)")
    add("--output-weight", type=number, default=0.5, help="the teacher's predictions (default 0.5)")
    add("--attention-weight", type=number, default=0.5, help="its attention outputs (default 0.5)")
    add("--transfer-weight", type=number, default=0.0, help="the same layer by layer, on its inputs")
    add("--feature-weight", type=number, default=0.0, help="KOALA's features")


def _add_training(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--steps", type=positive, default=1000, help="updates (default 1000)")
    add("--batch", type=positive, default=4, help="pictures per forward and device (default 4)")
    add("--accumulation", type=positive, default=1, help="forwards per update")
    add("--learning-rate", type=number, default=1e-4)
    add("--warmup", type=whole, default=20, help="steps (default 20)")
    add("--ema-decay", type=number, default=0.99, help="of the averaged weights; 0 for none")
    add("--caption-dropout", type=number, default=0.1, help="share of empty prompts (default 0.1)")
    add("--precision", choices=("no", "bf16"), default="no", help="bf16: autocast, trained in float32")
    add("--gradient-checkpointing", action="store_true", help="less memory, more time")
    add("--checkpoint-every", type=positive, default=100, help="steps (default 100)")
    add("--validate-every", type=whole, default=0, help="steps between validation pictures")
    add("--validation-prompts", type=Path, help="file of prompts, one a line")
    add("--seed", type=whole, default=0)


def run(arguments: argparse.Namespace) -> None:
    """Load, distil, and say where the weights are."""
    from vidattn.cli import generation
    from vidattn.distill import distill

    generation.quiet_libraries()
    _check_names(arguments)
    device = generation.choose_device(arguments.device)
    dtype = generation.choose_dtype(arguments.dtype, device)
    model = generation.load(arguments.model, torch.device("cpu"), dtype)  # each process moves it to its own
    if arguments.device == "cpu":
        _keep_on_cpu()
    config = _settings(arguments, model.defaults)
    try:
        done = distill(model.pipe, config)
    except TypeError as error:
        raise BadArgument("--model", str(error)) from error
    except (ValueError, FileNotFoundError) as error:
        raise BadArgument(_culprit(str(error)), str(error)) from error
    print(f"weights  {done.weights}\nrecipe   {done.recipe}\nsteps    {done.steps}")
    for name, value in done.metrics.items():
        print(f"{name:<8} {value:.3f} (student against teacher)")


def _keep_on_cpu() -> None:
    """Let accelerate train where the user wants it."""
    from accelerate.state import PartialState

    PartialState(cpu=True)


def _check_names(arguments: argparse.Namespace) -> None:
    """Refuse an unknown pattern before anything is loaded."""
    from vidattn.patches.presets import PRESETS
    from vidattn.patterns import PATTERNS
    from vidattn.patterns.text import nearest

    name = arguments.pattern.partition(":")[0].strip().lower()
    known = {**PRESETS, **PATTERNS}
    if name not in known:
        raise BadArgument("--pattern", f"unknown pattern {name!r}: {nearest(name, known)}")


def _settings(arguments: argparse.Namespace, defaults: dict[str, Any]) -> Any:
    """The distillation's settings; the model's own call arguments shape samples and pictures."""
    from vidattn.distill import Distillation

    call = {k: v for k, v in defaults.items() if k not in ("height", "width", "num_frames")}
    if arguments.sample_steps:
        call["num_inference_steps"] = arguments.sample_steps
    layers = [part.strip() for part in arguments.dense_layers.split(",") if part.strip()]
    dense = [int(part) if part.lstrip("-").isdigit() else part for part in layers]
    validation: tuple[str, ...] = ()
    if arguments.validation_prompts is not None:
        validation = tuple(_lines("--validation-prompts", arguments.validation_prompts))
    plain: tuple[str, ...] = (
        "output",
        "images",
        "samples",
        "frames",
        "train",
        "rank",
        "initial",
        "steps",
        "accumulation",
    )
    plain += ("learning_rate", "warmup", "ema_decay", "caption_dropout", "precision", "checkpoint_every")
    plain += ("gradient_checkpointing", "validate_every", "seed", "pattern", "task_weight", "output_weight")
    plain += ("attention_weight", "transfer_weight", "feature_weight")
    given = {name: getattr(arguments, name) for name in plain}
    prompts = _lines("--prompts", arguments.prompts) if arguments.prompts is not None else ()
    try:
        return Distillation(
            prompts=prompts,
            height=arguments.size[0],
            width=arguments.size[1],
            batch_size=arguments.batch,
            call=call,
            patch={"dense_layers": dense} if dense else {},
            validation_prompts=validation,
            **given,
        )
    except ValueError as error:
        raise BadArgument(_culprit(str(error)), str(error)) from error


def _lines(option: str, path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise BadArgument(option, f"cannot read {str(path)!r}: {error}") from error
    if not lines:
        raise BadArgument(option, f"{str(path)!r} holds no prompt")
    return lines


def _culprit(message: str) -> str:
    """The option that an error of the distillation is about."""
    starts = {"height": "--size", "images": "--images", "weights": "--initial", "initial": "--initial"}
    starts |= {"give either": "--prompts", "ema_decay": "--ema-decay", "caption": "--caption-dropout"}
    starts |= {"all loss weights": "--task-weight", "dense_layers": "--dense-layers"}
    starts |= {"learning_rate": "--learning-rate", "nothing to train": "--train"}
    found = next((option for start, option in starts.items() if message.startswith(start)), None)
    return found or ("--output" if "another output" in message else "--pattern")
