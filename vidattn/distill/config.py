"""What one distillation is given: a frozen set of settings, checked on construction."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

TRAINED = ("attention", "lora", "modules")
PRECISIONS = ("no", "bf16")
TIMES = ("uniform", "logit-normal")


@dataclasses.dataclass(frozen=True)
class Distillation:
    """Settings of :func:`vidattn.distill.distill`.

    Args:
        pattern: what the student's attention follows, as ``vidattn.patch`` takes it.
        output: folder of the run: cached data, checkpoint, log, pictures, and in the end
            ``adapter.safetensors`` and ``recipe.json``.
        patch: further arguments of ``vidattn.patch``, as ``radius`` or ``dense_layers``.
        prompts: prompts for which the teacher makes the training pictures; or captions' file, one a line.
        images: folder of pictures instead, each with a caption in a .txt beside it or in ``metadata.jsonl``
            (``{"file_name": ..., "text": ...}``).
        samples: how many pictures the teacher makes; the prompts are gone through again and again.
        height: of the training pictures, in pixels.
        width: of the training pictures, in pixels.
        frames: of the training clips, for video models.
        call: arguments of the pipeline's call for the teacher's samples and the validation pictures, as
            ``num_inference_steps`` or ``max_sequence_length``.
        train: "attention": the projections q, k, v and out of the layers that are replaced, all of them (of
            FLUX's double blocks those of the picture, as CLEAR does); "lora": low-rank additions to the same;
            "modules": neither. Modules that the preset brings (LinFusion's networks, feature maps, gates)
            train in every case.
        rank: of the LoRA.
        initial: weights to start from, as ``patch(weights=)`` takes them.
        task_weight: weight of the noise or flow matching loss.
        output_weight: weight of the squared difference between the student's and the teacher's predictions.
        attention_weight: weight of that between the outputs of their attention layers (CLEAR, LinFusion).
        transfer_weight: weight of the same with the teacher's inputs to each layer: attention transfer
            (LoLCATs), in which every layer learns for itself.
        feature_weight: weight of KOALA's features: self-attention outputs, and the last ones of UNet stages
            that have no attention.
        layer_weights: weights of layers in the three losses above, ``{layer name glob: weight}``, where the
            first match counts and layers without one count 0; ``{}`` weighs all alike.
        steps: updates of the weights.
        batch_size: pictures per forward and device.
        accumulation: forwards per update.
        learning_rate: of AdamW, after the warm-up.
        warmup: steps in which it rises; a cosine takes it down to a tenth afterwards.
        weight_decay: AdamW's.
        max_grad_norm: to which gradients are clipped.
        ema_decay: of the averaged weights, which are what is saved and shown; 0 for none.
        caption_dropout: share of samples that are trained with the empty prompt, for guidance.
        times: how noise levels are drawn in flow matching: "uniform" or "logit-normal".
        precision: "no", or "bf16" for autocast with weights to train in float32.
        gradient_checkpointing: compute activations again in the backward, for memory.
        checkpoint_every: steps between checkpoints, from which a killed run goes on.
        validate_every: steps between validation pictures; 0 for none but the last.
        validation_prompts: prompts that they show; () for no pictures.
        seed: of everything.

    Raises:
        ValueError: a value that is not allowed, named.
    """

    pattern: Any
    output: str | Path
    patch: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    prompts: Sequence[str] | str | Path = ()
    images: str | Path | None = None
    samples: int = 256
    height: int = 512
    width: int = 512
    frames: int = 17
    call: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    train: str = "attention"
    rank: int = 16
    initial: str | Path | None = None
    task_weight: float = 1.0
    output_weight: float = 0.5
    attention_weight: float = 0.5
    transfer_weight: float = 0.0
    feature_weight: float = 0.0
    layer_weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
    steps: int = 1000
    batch_size: int = 4
    accumulation: int = 1
    learning_rate: float = 1e-4
    warmup: int = 20
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    ema_decay: float = 0.99
    caption_dropout: float = 0.1
    times: str = "uniform"
    precision: str = "no"
    gradient_checkpointing: bool = False
    checkpoint_every: int = 100
    validate_every: int = 0
    validation_prompts: Sequence[str] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if bool(self.prompts) == (self.images is not None):
            raise ValueError(
                "give either prompts, for which the teacher makes pictures, or a folder of images"
            )
        positive = ("samples", "height", "width", "frames", "rank", "steps", "batch_size", "accumulation")
        for name in (*positive, "checkpoint_every", "learning_rate", "max_grad_norm"):
            _at_least(self, name, 0, above=True)
        weights = ("task_weight", "output_weight", "attention_weight", "transfer_weight", "feature_weight")
        for name in (*weights, "warmup", "weight_decay", "validate_every"):
            _at_least(self, name, 0)
        if not any(getattr(self, name) for name in weights):
            raise ValueError("all loss weights are 0: nothing would be learned")
        for name, allowed in (("train", TRAINED), ("precision", PRECISIONS), ("times", TIMES)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r}: must be one of {', '.join(allowed)}")
        for name in ("ema_decay", "caption_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r}: must be in [0, 1)")
        if "weights" in self.patch:
            raise ValueError("patch: give weights to start from as initial")

    def prompt_list(self) -> list[str]:
        """The prompts, read from their file if it is one.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it holds no prompt.
        """
        if not isinstance(self.prompts, (str, Path)):
            return list(self.prompts)
        path = Path(self.prompts)
        if not path.is_file():
            raise FileNotFoundError(f"prompts={str(path)!r}: there is no such file")
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        if not any(lines):
            raise ValueError(f"prompts={str(path)!r}: the file holds no prompt")
        return [line for line in lines if line]

    def fingerprint(self) -> dict[str, Any]:
        """The settings that a resumed run must share, as JSON holds them."""
        free = {"output", "checkpoint_every", "validate_every", "validation_prompts"}
        given = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in free}
        text = json.dumps(
            given, default=lambda value: list(value) if isinstance(value, Sequence) else str(value)
        )
        return dict(json.loads(text))


def _at_least(config: Distillation, name: str, least: int, above: bool = False) -> None:
    value = getattr(config, name)
    whole = isinstance(Distillation.__dataclass_fields__[name].default, int)
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        raise ValueError(f"{name}={value!r}: must be {'a whole' if whole else 'a'} number")
    if not (value > least if above else value >= least):
        raise ValueError(f"{name}={value!r}: must be {'greater than' if above else 'at least'} {least}")
