"""Options of all models, and what builders say about names and first values."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

POOLS = ("avg", "max", "token", "")


@dataclass(frozen=True)
class Options:
    """What every model can be built with.

    Args:
        in_chans: channels of the input image.
        num_classes: outputs of the head; 0 leaves the features.
        img_size: (height, width) that learned positions are made for; other sizes interpolate them.
        drop_rate: dropout in front of the head.
        drop_path_rate: greatest rate of stochastic depth; the published one when None.
        global_pool: "avg", "max", "token" (the class token, where there is one) or "" (none); the family's
            own when None.
    """

    in_chans: int = 3
    num_classes: int = 1000
    img_size: int | tuple[int, int] = 224
    drop_rate: float = 0.0
    drop_path_rate: float | None = None
    global_pool: str | None = None

    def __post_init__(self) -> None:
        if self.global_pool not in (None, *POOLS):
            raise ValueError(
                f"global_pool={self.global_pool!r}: must be one of {', '.join(map(repr, POOLS))}"
            )
        if self.num_classes < 0 or self.in_chans < 1:
            raise ValueError(f"num_classes={self.num_classes}, in_chans={self.in_chans}: at least 0 and 1")

    @property
    def image(self) -> tuple[int, int]:
        """``img_size`` as (height, width)."""
        return (self.img_size, self.img_size) if isinstance(self.img_size, int) else self.img_size


@dataclass(frozen=True)
class Names:
    """How an authors' checkpoint differs from our state dict.

    Args:
        renamed: (regular expression, replacement) pairs that turn the authors' keys into ours.
        derived: regular expression of keys that hold nothing learned, such as tables of angles; left out.
    """

    renamed: tuple[tuple[str, str], ...] = ()
    derived: str = r"(?!)"

    def ours(self, key: str) -> str | None:
        """Our key for an authors' key, or None where the tensor is derived."""
        if re.search(self.derived, key):
            return None
        for pattern, replacement in self.renamed:
            key = re.sub(pattern, replacement, key)
        return key


def rename(state: dict[str, Tensor], prefix: str, names: Names) -> None:
    """Turn the authors' keys under a prefix into ours, in place."""
    for key in [k for k in state if k.startswith(prefix)]:
        ours = names.ours(key[len(prefix) :])
        if ours is None:
            del state[key]
        elif prefix + ours != key:
            state[prefix + ours] = state.pop(key)


def take_indices(count: int, indices: int | Sequence[int] | None) -> list[int]:
    """Indices among ``count`` features, as timm reads them: None all, an integer the last n, or a list.

    Raises:
        ValueError: out of range.
    """
    if indices is None:
        return list(range(count))
    chosen = list(range(-indices, 0)) if isinstance(indices, int) else list(indices)
    if not chosen or not all(-count <= i < count for i in chosen):
        raise ValueError(f"indices={indices!r}: there are {count} feature maps")
    return [i % count for i in chosen]


def truncated_normal(std: float = 0.02, *kinds: type[nn.Module]) -> Callable[[nn.Module], None]:
    """First values: truncated normal for modules of these kinds (linear layers when none is given), biases 0.

    Modules with first values of their own define ``reset_own``, which runs instead.
    """
    chosen = kinds or (nn.Linear,)

    def weights(module: nn.Module) -> None:
        if isinstance(module, chosen):
            nn.init.trunc_normal_(module.weight, std=std)  # type: ignore[arg-type]
            if module.bias is not None:
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        own: Any = getattr(module, "reset_own", None)
        if own is not None:
            own()

    return weights


def published(rate: float | None, own: float) -> float:
    """The rate that the user asked for, or the published one."""
    return own if rate is None else rate


def parameters_of(model: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in model.parameters())
