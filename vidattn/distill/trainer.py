"""The training loop."""

from __future__ import annotations

import contextlib
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from vidattn.distill import checkpoints
from vidattn.distill.average import Average
from vidattn.distill.config import Distillation
from vidattn.distill.data import Samples, prepare_samples, step_generator
from vidattn.distill.logs import Log
from vidattn.distill.student import Student
from vidattn.distill.tasks import Task, task_of
from vidattn.distill.validation import Validation

ADAPTER, RECIPE = "adapter.safetensors", "recipe.json"


@dataclass(frozen=True)
class Distilled:
    """What a distillation made.

    Args:
        weights: ``adapter.safetensors``, for ``patch(weights=...)``.
        recipe: ``recipe.json``, for ``patch(pipe, recipe)``: pattern, options and weights in one.
        steps: updates made in all.
        metrics: of the last validation: PSNR and SSIM of the student's pictures against the teacher's.
    """

    weights: Path
    recipe: Path
    steps: int
    metrics: dict[str, float]


def distill(pipe: Any, config: Distillation) -> Distilled:
    """Teach a pipeline with another attention to do what it did with its own.

    Teacher and student are one model: the student is its patched view, with trained weights of its own where
    its attention is replaced. Run under ``accelerate launch`` to use several devices; run again with the same
    output folder to go on after an interruption. The pipeline is left as it was, on the device it trained on.

    Args:
        pipe: a pipeline with a FLUX.1 or Wan transformer or a Stable Diffusion UNet, not patched, without
            LoRA.
        config: all settings.

    Returns:
        Where the weights are.

    Raises:
        TypeError: a pipeline that cannot be distilled.
        ValueError, FileNotFoundError: settings that do not fit it, or the data and checkpoint of another run
            in the output folder.

    Example:
        >>> done = distill(pipe, Distillation("clear", "run", patch={"radius": 8}, prompts=["a red fox"]))
        >>> vidattn.patch(pipe, done.recipe)
    """
    from accelerate import Accelerator

    accelerator = Accelerator()
    folder = Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    task = task_of(pipe, config)
    pipe.to(accelerator.device)
    with torch.random.fork_rng(_devices(accelerator)):
        torch.manual_seed(config.seed)
        samples = prepare_samples(
            pipe, task, config, accelerator.process_index, accelerator.num_processes,
            accelerator.wait_for_everyone,
        )  # fmt: skip
        student = Student(pipe, task.model, config)
        try:
            return _Run(accelerator, config, task, samples, student).train()
        finally:
            student.close()


class _Run:
    """One call of :func:`distill`, with everything made."""

    def __init__(
        self, accelerator: Any, config: Distillation, task: Task, samples: Samples, student: Student
    ) -> None:
        self.accelerator, self.config, self.task = accelerator, config, task
        self.samples, self.student = samples, student
        self.folder = Path(config.output)
        self.weights = student.named_weights()
        self.average = Average(self.weights, config.ema_decay)
        self.optimizer = torch.optim.AdamW(
            list(self.weights.values()), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.settings = config.fingerprint() | {"processes": accelerator.num_processes}
        self.step = checkpoints.resume(self.folder, self.weights, self.average, self.optimizer, self.settings)
        self.main = bool(accelerator.is_main_process)
        self.validation = Validation(student, config)

    def train(self) -> Distilled:
        """All steps that are left, and the files at the end."""
        config, model = self.config, self.task.model
        checkpointing = getattr(model, "is_gradient_checkpointing", False)
        if config.gradient_checkpointing and not checkpointing:
            model.enable_gradient_checkpointing()  # type: ignore[operator]
        training = model.training
        model.train()
        log = Log(self.folder, self.step) if self.main else None
        try:
            wrapped = self.accelerator.prepare_model(self.student)
            metrics = self._loop(wrapped, log)
        finally:
            model.train(training)
            if config.gradient_checkpointing and not checkpointing:
                model.disable_gradient_checkpointing()  # type: ignore[operator]
            if log is not None:
                log.close()
        return Distilled(self.folder / ADAPTER, self.folder / RECIPE, self.step, metrics)

    def _loop(self, wrapped: Any, log: Log | None) -> dict[str, float]:
        config, metrics = self.config, {}
        if self.step == 0 and config.validation_prompts:
            metrics = self._validate(log)
        bar = tqdm(
            total=config.steps, initial=self.step, desc="distill", disable=not self.main, mininterval=1
        )
        while self.step < config.steps:
            began = time.perf_counter()
            parts = self._update(wrapped)
            self.step += 1
            self.average.update(self.step)
            bar.update()
            bar.set_postfix(loss=f"{parts['loss']:.4f}")
            if log is not None:
                log.write(self.step, parts | {"seconds": round(time.perf_counter() - began, 4)})
            if self.main and (self.step % config.checkpoint_every == 0 or self.step == config.steps):
                checkpoints.save(
                    self.folder, self.step, self.weights, self.average, self.optimizer, self.settings
                )
            if self.step == config.steps or (
                config.validate_every and self.step % config.validate_every == 0
            ):
                metrics = self._validate(log)
        bar.close()
        if self.main:
            self._write()
        self.accelerator.wait_for_everyone()
        return metrics

    def _update(self, wrapped: Any) -> dict[str, float]:
        """One step of the optimizer, over ``accumulation`` forwards."""
        config, accelerator = self.config, self.accelerator
        rate = _rate(self.step, config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        sums: dict[str, Tensor] = {}
        for micro in range(config.accumulation):
            last = micro == config.accumulation - 1
            with accelerator.no_sync(wrapped) if not last else contextlib.nullcontext():
                loss, parts = wrapped(*self._batch(micro))
                accelerator.backward(loss / config.accumulation)
            for name, part in parts.items():
                sums[name] = sums.get(name, torch.zeros_like(part)) + part / config.accumulation
        torch.nn.utils.clip_grad_norm_(list(self.weights.values()), config.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {n: float(accelerator.reduce(part, "mean")) for n, part in sums.items()} | {"rate": rate}

    def _batch(self, micro: int) -> tuple[dict[str, Any], Tensor]:
        """The arguments and target of one forward of this process; global randomness is set as well."""
        config, accelerator = self.config, self.accelerator
        rank, world = accelerator.process_index, accelerator.num_processes
        generator = step_generator(config.seed, self.step, micro, rank)
        torch.manual_seed(int(torch.randint(1 << 62, (), generator=generator)))  # for dropout
        place = ((self.step * config.accumulation + micro) * world + rank) * config.batch_size
        latents, conditions = self.samples.batch(
            place, config.batch_size, config.seed, config.caption_dropout, generator
        )
        dtype = next(p.dtype for p in self.task.model.parameters())
        move = {"device": accelerator.device, "dtype": dtype}
        batch = self.task.batch(
            latents.to(**move), {k: t.to(**move) for k, t in conditions.items()}, generator
        )
        return batch.arguments, batch.target

    def _validate(self, log: Log | None) -> dict[str, float]:
        found: dict[str, float] = {}
        if self.main and self.config.validation_prompts:
            model = self.task.model
            model.eval()
            with self.average.applied(), torch.random.fork_rng(_devices(self.accelerator)):
                found = self.validation.run(self.step)
            model.train()
            if log is not None:
                log.write(self.step, found)
        self.accelerator.wait_for_everyone()
        return found

    def _write(self) -> None:
        """The averaged weights and the recipe that names them."""
        metadata = {"pattern": str(self.config.pattern), "steps": str(self.step), "software": "vidattn"}
        tensors = {name: value.float() for name, value in self.average.values.items()}
        checkpoints.write_tensors(self.folder / ADAPTER, tensors, metadata)
        recipe = {"pattern": self.config.pattern, "weights": ADAPTER, **self.config.patch}
        text = json.dumps(recipe, indent=1, default=lambda value: value.to_dict())
        (self.folder / RECIPE).write_text(text + "\n", encoding="utf-8")


def _rate(step: int, config: Distillation) -> float:
    """Up in ``warmup`` steps, and down to a tenth on a cosine."""
    rise = min(1.0, (step + 1) / (config.warmup + 1))
    fall = 0.55 + 0.45 * math.cos(math.pi * step / config.steps)
    return config.learning_rate * rise * fall


def _devices(accelerator: Any) -> list[torch.device]:
    return [accelerator.device] if accelerator.device.type == "cuda" else []
