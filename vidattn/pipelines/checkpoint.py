"""A run's finished stages on disk, so that a killed run goes on where it was.

``run.json`` says which run the folder belongs to; ``stage-N.safetensors`` holds the pictures of a stage, the
state of the random generators behind it, and facts that later stages need. A stage is there whole or not at
all: files are written under another name, flushed to the disk and moved into place.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_GENERATOR = "generator."


class Checkpoint:
    """The folder of one run.

    Args:
        folder: made if it is not there; None keeps nothing.
        settings: JSON values that decide the result.

    Raises:
        ValueError: the folder holds a run with other settings, or something else.
    """

    def __init__(self, folder: str | Path | None, settings: dict[str, Any]) -> None:
        self.folder = Path(folder) if folder is not None else None
        if self.folder is None:
            return
        plain = json.loads(json.dumps(settings, sort_keys=True))
        digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
        self.folder.mkdir(parents=True, exist_ok=True)
        run = self.folder / "run.json"
        if run.is_file():
            _check_same(self.folder, _read_json(run), plain, digest)
            return
        if any(not path.name.startswith(".") for path in self.folder.iterdir()):
            raise ValueError(f"checkpoint={str(self.folder)!r} is not empty and holds no run of vidattn")
        text = json.dumps({"hash": digest, "settings": plain}, indent=1)
        _replace(run, lambda path: path.write_text(text, encoding="utf-8"))

    def load(self, index: int) -> tuple[Tensor, list[Tensor], dict[str, Any]] | None:
        """(pictures, generator states, facts) of a finished stage, or None."""
        path = self._path(index)
        if path is None or not path.is_file():
            return None
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dictionary
            facts = json.loads(file.metadata()["facts"])
        states = [tensors[f"{_GENERATOR}{i}"] for i in range(len(tensors) - 1)]
        return tensors["pictures"], states, facts

    def save(self, index: int, pictures: Tensor, states: list[Tensor], facts: dict[str, Any]) -> None:
        """Keep a finished stage."""
        path = self._path(index)
        if path is None:
            return
        from safetensors.torch import save_file

        tensors = {"pictures": pictures, **{f"{_GENERATOR}{i}": s for i, s in enumerate(states)}}
        _replace(path, lambda target: save_file(tensors, target, {"facts": json.dumps(facts)}))

    def _path(self, index: int) -> Path | None:
        return None if self.folder is None else self.folder / f"stage-{index}.safetensors"


def _check_same(folder: Path, found: dict[str, Any], settings: dict[str, Any], digest: str) -> None:
    if found.get("hash") == digest:
        return
    old = found.get("settings", {})
    names = sorted(k for k in {*old, *settings} if old.get(k) != settings.get(k))
    changes = "; ".join(f"{k}: {old.get(k)!r} there, {settings.get(k)!r} here" for k in names[:4])
    raise ValueError(
        f"checkpoint={str(folder)!r} belongs to a run with other settings ({changes}): give another folder,"
        " or delete it"
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"cannot read {path}: it holds no JSON object")
    return found


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def describe(value: Any) -> Any:
    """A call argument as JSON: tensors and pictures by a hash of their content."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [describe(each) for each in value]
    if isinstance(value, dict):
        return {str(key): describe(each) for key, each in value.items()}
    if isinstance(value, Tensor):
        return f"tensor {tuple(value.shape)} {digest_of([value])}"
    if hasattr(value, "tobytes"):
        return f"{type(value).__name__} {hashlib.sha256(value.tobytes()).hexdigest()}"
    if hasattr(value, "to_dict"):
        return describe(value.to_dict())
    return str(value)


def digest_of(tensors: list[Tensor]) -> str:
    """A short hash of the values of tensors."""
    made = hashlib.sha256()
    for tensor in tensors:
        made.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return made.hexdigest()[:16]
