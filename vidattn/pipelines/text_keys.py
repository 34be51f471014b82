"""DRA-Ctrl's stronger words: keys that some queries see raised, and others as they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from vidattn.patches.targets import targets_of

Outputs = tuple[Tensor, Tensor]


@contextmanager
def raised_words(pipe: Any, words: range, text: int, factor: float) -> Iterator[None]:
    """Keys of some text tokens plus ``factor`` times their mean size, for the frames but not for the text.

    As each layer attends once for all queries, it runs twice: what the frames get is taken from the run with
    raised keys, what the text gets from the other.

    Args:
        pipe: a pipeline with a HunyuanVideo transformer, and a batch of one.
        words: positions in the text.
        text: tokens of the text.
        factor: 0 changes nothing.
    """
    with ExitStack() as stack:
        for target in targets_of(pipe) if factor and len(words) else []:
            for layer in target.family.layers(target.model):
                _raise(stack, layer.module, words, text, factor)
        yield


def _raise(stack: ExitStack, attn: Any, words: range, text: int, factor: float) -> None:
    raising = False
    before, forward = attn.__dict__.get("forward"), attn.forward

    def raised(module: nn.Module, args: tuple, keys: Tensor) -> Tensor | None:
        """(batch, tokens, heads, head size), the text last, which has no positions."""
        if not raising:
            return None
        made, first = keys.clone(), keys.shape[1] - text
        chosen = made[:, first + words.start : first + words.stop]
        chosen += factor * chosen.abs().mean()
        return made

    def twice(*args: Any, **kwargs: Any) -> Outputs:
        nonlocal raising
        plain: Outputs = forward(*args, **kwargs)
        raising = True
        try:
            return forward(*args, **kwargs)[0], plain[1]
        finally:
            raising = False

    def put_back() -> None:
        attn.__dict__.pop("forward", None)
        if before is not None:
            attn.forward = before

    keys = attn.norm_k if attn.norm_added_k is None else attn.norm_added_k
    stack.callback(keys.register_forward_hook(raised).remove)
    stack.callback(put_back)
    attn.forward = twice
