"""Where the shipped demo models are, and what a pipeline folder says about itself before it is loaded."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).parent
# In a checkout, the folder of all demo models; in a wheel, what setup.py put there.
_FOLDERS = (_PACKAGE.parent / "demos" / "models", _PACKAGE / "_models")


@dataclass(frozen=True)
class PipelineFolder:
    """A pipeline on disk, in diffusers' format.

    Args:
        path: folder that holds ``model_index.json``.
        pipeline: class name of the pipeline, as ``"FluxPipeline"``.
        defaults: call arguments that suit this model, from its ``vidattn.json``; empty without one.
    """

    path: Path
    pipeline: str
    defaults: dict[str, Any]


def shipped() -> dict[str, PipelineFolder]:
    """The demo models of this installation by name; the checkout's come before the wheel's."""
    found: dict[str, PipelineFolder] = {}
    for folder in _FOLDERS:
        for index in sorted(folder.glob("*/model_index.json")):
            found.setdefault(index.parent.name, read(index.parent))
    return found


def read(path: Path) -> PipelineFolder:
    """What the pipeline folder says about itself.

    Raises:
        ValueError: the folder holds no pipeline in diffusers' format, or one of its JSON files can't be read.
    """
    index = path / "model_index.json"
    if not index.is_file():
        raise ValueError(f"{path} holds no model_index.json: it is no pipeline in diffusers' format")
    name = _json(index).get("_class_name")
    if not isinstance(name, str):
        raise ValueError(f"{index} names no pipeline class (_class_name)")
    hints = path / "vidattn.json"
    defaults = _json(hints).get("defaults", {}) if hints.is_file() else {}
    if not isinstance(defaults, dict):
        raise ValueError(f'{hints}: "defaults" must be an object of call arguments, not {defaults!r}')
    return PipelineFolder(path, name, defaults)


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, not {type(content).__name__}")
    return content
