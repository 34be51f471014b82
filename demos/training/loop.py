"""One training loop for every phase: schedule, averaged weights, progress lines, checkpoints.

Everything random in a step comes from a generator seeded by the step's number, and every data set is a
function of the seed, so a run that was killed and started again does exactly what it would have done.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

# cuDNN's attention backward fails (illegal memory access, torch 2.11 on an H100) at some of these shapes.
torch.backends.cuda.enable_cudnn_sdp(False)

LossFn = Callable[[torch.Generator], torch.Tensor]


@dataclass(frozen=True)
class Stage:
    """A stretch of training. ``build`` prepares the data and returns the loss of one step; step number s
    trains on ``batches[s % len(batches)]`` samples, so that one stage can go round several resolutions."""

    name: str
    share: float  # of the whole phase, in time or steps
    batches: tuple[int, ...]
    build: Callable[[], LossFn]


def common_arguments(parser: argparse.ArgumentParser, minutes: float) -> None:
    """The options that every phase has."""
    parser.add_argument("--data", type=Path, required=True, help="sprites.npz of demos.training.prepare")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the run: checkpoint, losses, configs"
    )
    parser.add_argument(
        "--minutes", type=float, default=minutes, help="length of the whole phase, data included"
    )
    parser.add_argument(
        "--steps", type=int, default=None, help="length in steps instead (what the tests use)"
    )
    parser.add_argument(
        "--pause-after", type=float, default=None, help="stop after so many minutes of this call"
    )
    parser.add_argument(
        "--pause-step", type=int, default=None, help="stop at this step; a second call goes on"
    )
    parser.add_argument("--size", choices=("full", "tiny"), default="full", help="network and data size")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--wait", type=float, default=0, help="minutes to wait for the earlier phases' files")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")


def wait_for(paths: Sequence[Path], seconds: float) -> None:
    """Waits until all files exist; exits with their names when they do not in time."""
    end = time.monotonic() + seconds
    while missing := [str(p) for p in paths if not p.exists()]:
        if time.monotonic() >= end:
            raise SystemExit(f"missing: {', '.join(missing)}; run that phase first (README.md has the order)")
        time.sleep(0.5)


def autocast(device: torch.device | str) -> torch.autocast:
    """bfloat16 on a GPU, plain float32 on a CPU."""
    kind = torch.device(device).type
    return torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda")


class Loop:
    """Trains ``parts`` with AdamW; keeps an average of the weights, which is what gets exported."""

    def __init__(
        self,
        parts: torch.nn.ModuleDict,
        args: argparse.Namespace,
        lr: float,
        ema_decay: float = 0.999,
        warmup: int = 200,
        weight_decay: float = 0.01,
    ) -> None:
        self.parts, self.args, self.lr, self.ema_decay, self.warmup = parts, args, lr, ema_decay, warmup
        self.named = [(n, p) for n, p in parts.named_parameters() if p.requires_grad]
        self.weights = [p for _, p in self.named]
        self.ema = [p.detach().clone() for p in self.weights]
        matrices = [p for p in self.weights if p.ndim > 1]
        vectors = [p for p in self.weights if p.ndim < 2]
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}],
            lr=lr,
            betas=(0.9, 0.95),
            fused=torch.device(args.device).type == "cuda",
        )
        self.step, self.samples, self.elapsed = 0, 0, 0.0
        self.finished: list[str] = []  # stages done
        self.log: list[dict[str, Any]] = []
        self.generator = torch.Generator(args.device)
        args.out.mkdir(parents=True, exist_ok=True)

    # -- checkpoints

    def _tensors(self) -> dict[str, torch.Tensor]:
        out = {}
        for (name, weight), average in zip(self.named, self.ema, strict=True):
            out[f"weight.{name}"], out[f"ema.{name}"] = weight.detach(), average
            for key, value in self.optimizer.state.get(weight, {}).items():
                out[f"adam.{key}.{name}"] = value.detach()
        return {k: v.contiguous() for k, v in out.items()}

    def save(self) -> None:
        """Writes the checkpoint under another name first, so that a kill in the middle leaves the old one."""
        state = {k: getattr(self, k) for k in ("step", "samples", "elapsed", "finished", "log")}
        partial = self.args.out / "checkpoint.partial"
        save_file(self._tensors(), partial, metadata={"state": json.dumps(state)})
        partial.replace(self.args.out / "checkpoint.safetensors")
        (self.args.out / "losses.json").write_text(json.dumps(state, indent=1), encoding="utf-8")

    def resume(self) -> bool:
        """Loads the checkpoint of an earlier call, if there is one."""
        path = self.args.out / "checkpoint.safetensors"
        if not path.exists():
            return False
        tensors = load_file(path)
        for key, value in read_state(path).items():
            setattr(self, key, value)
        with torch.no_grad():
            for (name, weight), average in zip(self.named, self.ema, strict=True):
                weight.copy_(tensors[f"weight.{name}"])
                average.copy_(tensors[f"ema.{name}"])
                prefix, suffix = "adam.", f".{name}"
                self.optimizer.state[weight] = {
                    key[len(prefix) : -len(suffix)]: value.to(
                        "cpu" if value.ndim == 0 else weight.device, copy=True
                    )
                    for key, value in tensors.items()
                    if key.startswith(prefix)
                    and key.endswith(suffix)
                    and "." not in key[len(prefix) : -len(suffix)]
                }
        if self.optimizer.param_groups[0].get("fused"):  # the fused kernel wants its step count on the GPU
            for state in self.optimizer.state.values():
                if "step" in state:
                    state["step"] = state["step"].to(self.args.device)
        print(f"resumed at step {self.step}, {self.elapsed:.0f} s into the phase", flush=True)
        return True

    def restart_average(self) -> None:
        """Makes the averaged weights equal to the current ones, after weights were loaded from elsewhere."""
        self.ema = [p.detach().clone() for p in self.weights]

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, ``parts`` carries the averaged weights, in evaluation mode."""
        kept = [p.detach().clone() for p in self.weights]
        training = self.parts.training
        with torch.no_grad():
            torch._foreach_copy_(self.weights, self.ema)
            self.parts.eval()
            try:
                yield
            finally:
                self.parts.train(training)
                torch._foreach_copy_(self.weights, kept)

    # -- the loop

    def warm(self, losses: Sequence[Callable[[], torch.Tensor]]) -> None:
        """Compiles for every shape ahead of time: one forward and backward of each loss, no update."""
        for loss in losses:
            began = time.monotonic()
            loss().backward()
            self.optimizer.zero_grad(set_to_none=True)
            print(f"compiled in {time.monotonic() - began:.0f} s", flush=True)

    def progress(self) -> float:
        """0 at the start of the phase, 1 at its end."""
        if self.args.steps is not None:
            return self.step / self.args.steps
        return self.elapsed / (60 * self.args.minutes)

    def _rate(self) -> float:
        """Warm-up, flat until 40% of the phase, then a cosine to 2%."""
        tail = max(0.0, (self.progress() - 0.4) / 0.6)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, tail)))
        return self.lr * min(1.0, (self.step + 1) / self.warmup) * (0.02 + 0.98 * cosine)

    def _update(self, loss_fn: LossFn) -> torch.Tensor:
        self.generator.manual_seed(self.args.seed * 1_000_003 + self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate()
        loss = loss_fn(self.generator)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0, foreach=True)
        self.optimizer.step()
        decay = min(self.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(self.ema, [p.detach() for p in self.weights], 1 - decay)
        return loss.detach()

    def run(
        self, stages: Sequence[Stage], validate: Callable[[Stage], dict[str, float]] | None = None
    ) -> bool:
        """Trains to the end of the phase, or to the pause; True when the phase is complete."""
        began, before = time.monotonic(), self.elapsed
        end_of, total = {}, 0.0
        for stage in stages:
            total += stage.share
            end_of[stage.name] = total
        paused = False
        for stage in stages:
            if stage.name in self.finished or paused:
                continue
            loss_fn = stage.build()
            self.parts.train()
            self.elapsed = before + time.monotonic() - began
            said = saved = time.monotonic()
            step0, sum_loss, count, seen = self.step, 0.0, 0, self.samples
            while self.progress() < end_of[stage.name] / total - 1e-9:
                sum_loss, count = sum_loss + self._update(loss_fn), count + 1
                self.samples += stage.batches[self.step % len(stage.batches)]
                self.step += 1
                now = time.monotonic()
                if now - said > 5 or self.step == step0 + 1:
                    mean = float(sum_loss) / count  # waits for the GPU, so the clock below is honest
                    now = time.monotonic()
                    speed = (self.samples - seen) / (now - said)
                    print(
                        f"{stage.name}: step {self.step}, {100 * self.progress():.0f}%, loss {mean:.4f}, "
                        f"{speed:.0f} samples/s, lr {self._rate():.1e}",
                        flush=True,
                    )
                    said, sum_loss, count, seen = now, 0.0, 0, self.samples
                self.elapsed = before + now - began
                if now - saved > 100:
                    self.save()
                    saved = time.monotonic()
                paused = self.step == self.args.pause_step or (
                    self.args.pause_after is not None and now - began > 60 * self.args.pause_after
                )
                if paused:
                    break
            if not paused:
                self.finished.append(stage.name)
            if validate is not None:
                with self.averaged():
                    record = {"stage": stage.name, "step": self.step, "samples": self.samples}
                    record |= {"seconds": round(self.elapsed, 1)} | validate(stage)
                self.log.append(record)
                print(record, flush=True)
            self.elapsed = before + time.monotonic() - began
            self.save()
        if not paused:
            (self.args.out / "finished").touch()
        return not paused


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Step, samples, seconds, finished stages and validation log of a checkpoint."""
    from safetensors import safe_open

    with safe_open(checkpoint, "pt") as file:
        return json.loads(file.metadata()["state"])


def load_averaged(parts: torch.nn.ModuleDict, run: Path) -> dict[str, Any]:
    """Fills ``parts`` with the averaged weights of the run's checkpoint; returns its state."""
    path = run / "checkpoint.safetensors"
    if not path.exists():
        raise SystemExit(f"{run}: no checkpoint.safetensors; run that phase first")
    tensors = load_file(path)
    with torch.no_grad():
        for name, weight in parts.named_parameters():
            weight.copy_(tensors[f"ema.{name}"])
    return read_state(path)
