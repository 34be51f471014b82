"""Weights from files: safetensors only, with the authors' names or ours."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from vidattn.backbones.backbone import Backbone

PICKLES = (".pth", ".pt", ".ckpt", ".bin", ".pkl", ".tar")


def load_file(model: Backbone, path: Path) -> None:
    """Load a .safetensors file into a model; a head of another number of classes is left as it is.

    Args:
        model: the model; unchanged when the file does not fit.
        path: the file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file of another kind, or keys or shapes that differ.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file as read

    if path.suffix in PICKLES:
        raise ValueError(
            f"pretrained_file={str(path)!r}: {path.suffix} files are pickles, which can run code when they"
            " are read; convert it once with safetensors.torch.save_file (docs/backbones.md shows how)"
        )
    if not path.is_file():
        raise FileNotFoundError(f"pretrained_file={str(path)!r}: there is no such file")
    try:
        state = read(path)
    except SafetensorError as error:
        raise ValueError(f"pretrained_file={str(path)!r}: not a safetensors file ({error})") from error
    load_state(model, state, str(path))


def load_state(model: Backbone, state: dict[str, Tensor], source: str = "the state dict") -> None:
    """Load tensors with the authors' names or ours; see :func:`load_file`.

    Args:
        model: the model.
        state: tensors by name.
        source: what messages call them.

    Raises:
        ValueError: keys or shapes that differ.
    """
    own = model.state_dict()
    given = {ours: value for key, value in state.items() if (ours := model.names.ours(key)) is not None}
    for key in [k for k in given if k in own and _is_head(model, k) and given[k].shape != own[k].shape]:
        given[key] = own[key]
    given = model.fitted(given)
    wrong = [
        f"{key} {tuple(given[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own
        if key in given and given[key].shape != own[key].shape
    ]
    missing, extra = sorted(set(own) - set(given)), sorted(set(given) - set(own))
    if wrong or missing or extra:
        parts = (("missing", missing), ("unexpected", extra), ("other shapes", wrong))
        told = "; ".join(f"{what}: {_few(names)}" for what, names in parts if names)
        raise ValueError(f"{source} does not fit this model; {told}")
    model.load_state_dict(given)


def _is_head(model: Backbone, key: str) -> bool:
    return key.rpartition(".")[0] == model.head_at


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
