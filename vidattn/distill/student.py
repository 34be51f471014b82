"""Teacher and student in one model: the student is its patched view, with the few weights that train.

Everything that does not train is shared. The teacher is the same model with the patch paused and its own
weights in place.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vidattn.distill.config import Distillation
from vidattn.distill.features import Recorder, mean_difference, stages_without_attention, weights_of
from vidattn.distill.trainable import Exchanged, LowRank, Trainable
from vidattn.patches.api import patch
from vidattn.patches.loading import is_dense
from vidattn.patches.model_patch import ModelPatch, patch_of

Arguments = dict[str, Any]


class Student(nn.Module):
    """The model that is distilled, both ways round; called with a batch it gives the loss and its parts.

    Args:
        pipe: the pipeline; patched while the student lives.
        model: its denoiser.
        config: of the distillation.

    Raises:
        ValueError: whatever ``patch`` refuses; a model that carries LoRA already; nothing to train.
    """

    def __init__(self, pipe: Any, model: nn.Module, config: Distillation) -> None:
        super().__init__()
        if getattr(model, "peft_config", None):
            raise ValueError("the model carries LoRA adapters; fuse or unload them before distilling")
        self.config, self.pipe = config, pipe
        self._grads = {p: p.requires_grad for p in model.parameters()}
        options = {"min_tokens": 0, "weights": config.initial, **config.patch}
        self.weights: Trainable | None = None
        self._recorder: Recorder | None = None
        self._handle = patch(pipe, config.pattern, **options)
        try:
            self._build(model)
        except BaseException:
            self.close()
            raise

    def _build(self, model: nn.Module) -> None:
        found = patch_of(model)
        assert found is not None, "patch has just been put on the pipeline's denoiser"
        self.patch: ModelPatch = found
        self.model = model.requires_grad_(False)
        planned = [p for p in found.planned if not is_dense(found.slots[p.slot].spec.stages)]
        layers = {p.layer.name: p.layer.module for p in planned}
        if not layers:
            raise ValueError("every layer is dense: nothing would be learned")
        config = self.config
        weights = list(model.parameters())
        dtype = torch.float32 if config.precision == "bf16" else weights[0].dtype
        mixers = nn.ModuleDict({n.replace(".", "|"): m for n, (_, m) in found.mixers.layers.items()})
        self.mixers = mixers.to(dtype).requires_grad_(True)
        if config.train != "modules":
            self.weights = (LowRank if config.train == "lora" else Exchanged)(
                model, layers, config.rank, dtype
            )
        if found.weights is not None and found.weights.names:
            self._drop_initial(found, model)
        if not self.named_weights():
            raise ValueError(
                "nothing to train: the pattern brings no modules, so train must not be 'modules'"
            )
        self._attention = weights_of(list(layers), config.layer_weights)
        self._stages = dict.fromkeys(stages_without_attention(model), 1.0) if config.feature_weight else {}
        watched = layers | (stages_without_attention(model) if self._stages else {})
        self._recorder = Recorder(watched, calls=config.transfer_weight > 0)
        self._layers = layers

    def _drop_initial(self, found: ModelPatch, model: nn.Module) -> None:
        """The weights to start from have been copied; the model gets its own back."""
        if not isinstance(self.weights, Exchanged) or found.weights is None:
            raise ValueError(
                f"initial={str(self.config.initial)!r} holds projections, so train must be 'attention'"
            )
        self.weights.off()
        found.weights.restore(model)
        found.weights = None
        self.weights.on()

    def named_weights(self) -> dict[str, nn.Parameter]:
        """What trains, by the names that weights files have for it."""
        found = {f"{k.replace('|', '.')}": p for k, p in self.mixers.named_parameters()}
        return found | (self.weights.named() if self.weights is not None else {})

    @contextlib.contextmanager
    def teacher(self) -> Iterator[None]:
        """Inside, the model is as it was before distillation."""
        if self.weights is not None:
            self.weights.off()
        self.patch.paused = True
        try:
            yield
        finally:
            self.patch.paused = False
            if self.weights is not None:
                self.weights.on()

    # ------------------------------------------------------------------ the loss
    def forward(self, arguments: Arguments, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum of the losses, and each before weighting, detached."""
        config, recorder = self.config, self._recorder
        assert recorder is not None, "made in the constructor"
        parts: dict[str, Tensor] = {}
        needs_features = config.attention_weight or config.transfer_weight or config.feature_weight
        wanted: Tensor | None = None
        calls: dict[str, Any] = {}
        theirs: dict[str, Tensor] = {}
        if config.output_weight or needs_features:
            with self.teacher(), torch.no_grad(), recorder.recording() as theirs:
                wanted = self._predict(arguments)
            calls = recorder.calls
        if config.task_weight or config.output_weight or config.attention_weight or config.feature_weight:
            with recorder.recording() as ours:
                predicted = self._predict(arguments)
            parts["task"] = nn.functional.mse_loss(predicted.float(), target.float())
            if wanted is not None:
                parts["output"] = nn.functional.mse_loss(predicted.float(), wanted.float())
                parts["attention"] = mean_difference(ours, theirs, self._attention)
            if config.feature_weight:
                parts["feature"] = mean_difference(ours, theirs, self._attention | self._stages)
        if config.transfer_weight:
            parts["transfer"] = self._transfer(arguments, calls, theirs)
        total = torch.stack([getattr(config, f"{name}_weight") * part for name, part in parts.items()]).sum()
        return total, {"loss": total.detach()} | {name: part.detach() for name, part in parts.items()}

    def _predict(self, arguments: Arguments) -> Tensor:
        with self._mixed():
            return self.model(**arguments, return_dict=False)[0]

    def _mixed(self) -> torch.autocast:
        kind = next(self.model.parameters()).device.type
        return torch.autocast(kind, torch.bfloat16, enabled=self.config.precision == "bf16")

    def _transfer(self, arguments: Arguments, calls: dict[str, Any], theirs: dict[str, Tensor]) -> Tensor:
        """Each layer alone, on what the teacher's layer was given."""
        self.patch.prepare(self.model, arguments)
        assert self._recorder is not None, "made in the constructor"
        with self._mixed(), self._recorder.recording() as ours:
            for name in self._attention:
                args, kwargs = calls[name]
                self._layers[name](*args, **kwargs)
        return mean_difference(ours, theirs, self._attention)

    # ------------------------------------------------------------------ the end
    def close(self) -> None:
        """Leave the pipeline as it was before."""
        if self._recorder is not None:
            self._recorder.close()
        if self.weights is not None:
            self.weights.remove()
        self._handle.unpatch()
        for parameter, wanted in self._grads.items():
            parameter.requires_grad_(wanted).grad = None
