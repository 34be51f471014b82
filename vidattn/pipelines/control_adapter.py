"""DRA-Ctrl's LoRA: it acts on the condition and the texts, the generated frames use the base weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

ADAPTER = "vidattn_control"
_TEXT = ("context_embedder", "_context", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
"""In the names of the modules that see nothing but text."""


@contextmanager
def adapter_loaded(pipe: Any, lora: Any) -> Iterator[None]:
    """The pipeline with an adapter for the length of a ``with`` block.

    Args:
        pipe: a pipeline with a HunyuanVideo transformer.
        lora: what ``pipe.load_lora_weights`` takes; the names in it may do without "transformer." in front,
            as in the files that the authors published. None changes nothing.

    Raises:
        ValueError: the pipeline has adapters already, or nothing in ``lora`` is for its transformer.
    """
    if lora is None:
        yield
        return
    loaded = sorted(getattr(pipe.transformer, "peft_config", {}))
    if loaded:
        raise ValueError(
            f"lora: the pipeline has adapters already, {loaded}: call pipe.unload_lora_weights()"
        )
    state = pipe.lora_state_dict(lora)
    stems = {name for name, _ in pipe.transformer.named_children()}
    state = {f"transformer.{k}" if k.split(".")[0] in stems else k: v for k, v in state.items()}
    if not any(k.startswith("transformer.") and "lora" in k for k in state):
        raise ValueError(f"lora: nothing for the transformer in it; it has {sorted(state)[:3]}")
    try:
        pipe.load_lora_weights(state, adapter_name=ADAPTER)
        yield
    finally:
        pipe.unload_lora_weights()


@contextmanager
def condition_only(transformer: nn.Module, frame: int, generated: int) -> Iterator[None]:
    """Adapters leave the generated frames alone, for the length of a ``with`` block.

    What an adapter adds is set to zero at those tokens, and in the modulation by time, which has no tokens.

    Args:
        transformer: with the condition in its first latent frame.
        frame: tokens of a latent frame.
        generated: latent frames behind the condition.

    Raises:
        ValueError: adapters that are merged into the weights, or no plain LoRA of linear layers.
    """

    def zero(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        kept = output.clone()
        if kept.ndim == 2:
            return kept.zero_()
        kept[:, frame : frame * (1 + generated)] = 0
        return kept

    with ExitStack() as stack:
        for up in _ups(transformer):
            stack.callback(up.register_forward_hook(zero).remove)
        yield


def _ups(transformer: nn.Module) -> list[nn.Module]:
    """The second matrices of the adapters of all layers that the frames pass."""
    found: list[nn.Module] = []
    for name, module in transformer.named_modules():
        ups: Any = getattr(module, "lora_B", None)
        if not isinstance(ups, nn.ModuleDict):
            continue
        if getattr(module, "merged", False):
            raise ValueError(f"{name}: its adapter is fused into the weights; call pipe.unfuse_lora()")
        dora: Any = getattr(module, "use_dora", {})
        if any(dora.values()) or not all(isinstance(up, nn.Linear) for up in ups.values()):
            raise ValueError(f"{name}: only plain LoRA of linear layers can leave the generated frames alone")
        if not any(part in name for part in _TEXT):
            found += ups.values()
    return found
