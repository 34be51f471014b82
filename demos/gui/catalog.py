"""The models of the app: the shipped ones, and pipelines below the folders that were allowed at launch."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vidattn import demo_models
from vidattn.cli import full_size, generation
from vidattn.cli.arguments import BadArgument

_DEPTH = 4
"""How far below an allowed folder pipelines are looked for."""


@dataclass(frozen=True)
class Facts:
    """What the controls need to know of a loaded model.

    Args:
        name: as it was chosen.
        pipeline: class name.
        step: pixels that one token of the finest grid stands for, on each side.
        frame_step: frames that one token stands for; 0 for models of still pictures.
        patch: whether vidattn can patch it: "" or why not.
        defaults: call arguments that suit it.
        denoiser: its layers, for predictions; None where they cannot be read.
    """

    name: str
    pipeline: str
    step: int
    frame_step: int
    patch: str
    defaults: dict[str, Any]
    denoiser: full_size.Denoiser | None = None

    @property
    def moving(self) -> bool:
        """Whether it makes clips."""
        return self.frame_step > 0

    @property
    def native(self) -> tuple[int, int]:
        """(height, width) in tokens of the size that the model is at home at."""
        return self.grid(self.defaults.get("height", 512), self.defaults.get("width", 512))[1:]

    def grid(self, height: int, width: int, frames: int = 1) -> tuple[int, int, int]:
        """Tokens (T, H, W) of a picture or clip of that size."""
        time = (frames - 1) // self.frame_step + 1 if self.moving else 1
        return time, max(1, height // self.step), max(1, width // self.step)


class Catalog:
    """Finds models by name and keeps the one loaded last.

    Args:
        folders: pipelines may be opened below these, and nowhere else.
        device: as ``vidattn generate --device``.
        dtype: as ``vidattn generate --dtype``.

    Raises:
        ValueError: one of ``folders`` is no folder.
    """

    def __init__(self, folders: Iterable[str | Path] = (), device: str = "auto", dtype: str = "auto") -> None:
        self.folders = tuple(Path(folder).resolve() for folder in folders)
        for folder in self.folders:
            if not folder.is_dir():
                raise ValueError(f"models={str(folder)!r}: there is no such folder")
        generation.quiet_libraries()
        self.device = generation.choose_device(device)
        self.dtype = generation.choose_dtype(dtype, self.device)
        self._loaded: generation.Loaded | None = None
        self._facts: dict[str, Facts] = {}
        self._met: set[tuple[object, ...]] = set()

    # ------------------------------------------------------------------ names
    def names(self, moving: bool | None = None) -> list[str]:
        """Shipped models by name, then folders below the allowed ones; ``moving`` picks clips or pictures."""
        found = {name: folder.pipeline for name, folder in demo_models.shipped().items()}
        for path in self._walk():
            try:
                found.setdefault(str(path), demo_models.read(path).pipeline)
            except ValueError:
                continue  # named by hand, the error says what is wrong with it
        return [name for name, pipeline in found.items() if moving is None or _moving(pipeline) == moving]

    def _walk(self) -> Iterator[Path]:
        for root in self.folders:
            for folder, inner, files in os.walk(root):
                path = Path(folder)
                if "model_index.json" in files:
                    yield path
                    inner.clear()
                if len(path.relative_to(root).parts) >= _DEPTH:
                    inner.clear()

    def find(self, name: str) -> demo_models.PipelineFolder:
        """The folder of a model.

        Raises:
            ValueError: there is none of that name, or it is not below an allowed folder.
        """
        shipped = demo_models.shipped()
        if name in shipped:
            return shipped[name]
        path = Path(name).resolve()  # so that no link or .. leads out
        if not any(path.is_relative_to(root) for root in self.folders):
            allowed = ", ".join(map(str, self.folders)) or "none was; start the app with --models FOLDER"
            raise ValueError(f"{name!r} cannot be opened: only folders allowed at launch can ({allowed})")
        return demo_models.read(path)

    # ------------------------------------------------------------------ loading, on the engine's thread only
    def load(self, name: str) -> generation.Loaded:
        """The model on its device. One is kept: loading another lets go of it.

        Raises:
            ValueError: as ``find``.
            BadArgument: its files cannot be loaded.
        """
        folder = self.find(name)
        if self._loaded is None or self._loaded.name != name:
            self._loaded = None
            self._met.clear()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            made = generation.load(str(folder.path), self.device, self.dtype)
            made.pipe.set_progress_bar_config(disable=True)
            self._loaded = generation.Loaded(made.pipe, name, made.defaults)
        return self._loaded

    def first_time(self, *case: object) -> bool:
        """Whether this is asked for the first time since the model was loaded."""
        new = case not in self._met
        self._met.add(case)
        return new

    def known(self, name: str) -> Facts | None:
        """What the controls need to know, if the model was loaded before."""
        return self._facts.get(name)

    def facts(self, name: str) -> Facts:
        """What the controls need to know; loads the model the first time."""
        if name not in self._facts:
            model = self.load(name)
            moving = generation.moving(model)
            self._facts[name] = Facts(
                name,
                type(model.pipe).__name__,
                generation.size_step(model.pipe),
                _frame_step(model.pipe) if moving else 0,
                _why_not(model.pipe),
                dict(model.defaults),
                self._denoiser(name),
            )
        return self._facts[name]

    def _denoiser(self, name: str) -> full_size.Denoiser | None:
        try:
            return full_size.find(str(self.find(name).path))
        except BadArgument:  # of a class that the cost model does not know
            return None


def _moving(pipeline: str) -> bool:
    import diffusers

    cls = getattr(diffusers, pipeline, None)
    return cls is not None and "num_frames" in inspect.signature(cls.__call__).parameters


def _frame_step(pipe: Any) -> int:
    patch = getattr(getattr(pipe, "transformer", None), "config", {}).get("patch_size", 1)
    along = int(patch[0]) if isinstance(patch, (list, tuple)) and len(patch) == 3 else 1
    return int(getattr(pipe, "vae_scale_factor_temporal", 1)) * along


def _why_not(pipe: Any) -> str:
    from vidattn.patches.targets import targets_of

    try:
        targets_of(pipe)
    except TypeError as error:
        return str(error)
    return ""
