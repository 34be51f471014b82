"""Training data: latents with their conditions, a safetensors file per sample, made once, read at random.

Sample number i is the same whoever makes it and whenever: a run that was killed goes on with what is there.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from vidattn.distill.config import Distillation
from vidattn.distill.tasks import Conditions, Task

LATENTS = "latents"
_PICTURES = (".png", ".jpg", ".jpeg", ".webp")


class Samples:
    """The cached samples of a run.

    Args:
        folder: of the files.
        count: how many there are.
    """

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.count = folder, count
        self.empty: Conditions = load_file(folder / "empty.safetensors")

    def batch(
        self, position: int, size: int, seed: int, dropout: float, generator: torch.Generator
    ) -> tuple[Tensor, Conditions]:
        """Samples ``position`` ... ``position + size - 1`` of an endless reading, shuffled anew every time
        through; a share of them with the empty prompt.
        """
        rows = []
        for number in range(position, position + size):
            epoch, index = divmod(number, self.count)
            order = torch.randperm(self.count, generator=seeded(seed, epoch))
            row = load_file(self.folder / _file_name(int(order[index])))
            if float(torch.rand((), generator=generator)) < dropout:
                row |= self.empty
            rows.append(row)
        stacked = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        return stacked.pop(LATENTS), stacked


def seeded(*numbers: int) -> torch.Generator:
    """A CPU generator for a tuple of numbers: different for different tuples."""
    mixed = 0
    for number in numbers:
        mixed = (mixed * 1_000_003 + number + 1) % (1 << 62)
    return torch.Generator().manual_seed(mixed)


def step_generator(seed: int, step: int, micro: int, rank: int) -> torch.Generator:
    """All that is random in one forward of training comes from here, so that nothing else need be saved."""
    return seeded(seed, step, micro, rank)


def _file_name(index: int) -> str:
    return f"{index:06d}.safetensors"


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    partial = path.with_suffix(".partial")
    save_file({k: t.detach().cpu().contiguous() for k, t in tensors.items()}, partial)
    partial.replace(path)


def prepare_samples(
    pipe: Any, task: Task, config: Distillation, rank: int, world: int, wait: Callable[[], None]
) -> Samples:
    """Make the samples that are missing, each process its share, and wait for the others.

    Raises:
        ValueError: the data of another run is in the folder, a picture has no caption, or the images cannot
            be encoded for this model.
    """
    folder = Path(config.output) / "data"
    folder.mkdir(parents=True, exist_ok=True)
    pictures = list(_captioned(Path(config.images))) if config.images is not None else []
    prompts = [caption for _, caption in pictures] or config.prompt_list()
    count = len(pictures) or config.samples
    if rank == 0:
        _check_same(folder, config, prompts)
    wait()
    missing = [i for i in range(rank, count, world) if not (folder / _file_name(i)).is_file()]
    with torch.no_grad(), quiet(pipe):
        if rank == 0 and not (folder / "empty.safetensors").is_file():
            _write(folder / "empty.safetensors", {k: t[0] for k, t in task.conditions([""]).items()})
        for index in tqdm(missing, desc="samples", disable=rank != 0 or not missing, mininterval=1):
            prompt = prompts[index % len(prompts)]
            if pictures:
                latents = task.latents(_read(pictures[index][0], config, pipe))
            else:
                latents = _teach(pipe, config, prompt, index)
            conditions = {k: t[0] for k, t in task.conditions([prompt]).items()}
            _write(folder / _file_name(index), {LATENTS: latents[0], **conditions})
    wait()
    return Samples(folder, count)


def _teach(pipe: Any, config: Distillation, prompt: str, index: int) -> Tensor:
    """The teacher's latents for a prompt."""
    call = dict(config.call) | {"height": config.height, "width": config.width}
    if hasattr(pipe, "vae_scale_factor_temporal"):
        call["num_frames"] = config.frames
    generator = seeded(config.seed, 7, index)
    return pipe(prompt=prompt, generator=generator, output_type="latent", return_dict=False, **call)[0]


@contextlib.contextmanager
def quiet(pipe: Any) -> Iterator[None]:
    """Without the pipeline's own progress bars."""
    before = dict(getattr(pipe, "_progress_bar_config", {}))
    pipe.set_progress_bar_config(disable=True)
    try:
        yield
    finally:
        pipe.set_progress_bar_config(**before)


def _check_same(folder: Path, config: Distillation, prompts: Sequence[str]) -> None:
    """Refuse to mix samples that were made in different ways."""
    names = ("images", "height", "width", "frames", "call", "seed")
    given = config.fingerprint()
    about = {name: given[name] for name in names} | {"prompts": list(prompts)}
    file = folder / "about.json"
    if file.is_file():
        known = json.loads(file.read_text(encoding="utf-8"))
        changed = [name for name in about if known.get(name) != about[name]]
        if changed:
            raise ValueError(
                f"{folder} holds samples made with other {', '.join(changed)}; give another output"
            )
    file.write_text(json.dumps(about, indent=1), encoding="utf-8")


# ---------------------------------------------------------------------- folders of pictures
def _captioned(folder: Path) -> Iterator[tuple[Path, str]]:
    """Pictures with their captions, in the order of their names."""
    if not folder.is_dir():
        raise ValueError(f"images={str(folder)!r}: there is no such folder")
    listed: dict[str, str] = {}
    table = folder / "metadata.jsonl"
    if table.is_file():
        for number, line in enumerate(table.read_text(encoding="utf-8").splitlines(), 1):
            try:
                row = json.loads(line)
                listed[row["file_name"]] = row["text"]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{table}, line {number}: needs file_name and text ({error})") from error
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in _PICTURES)
    if not files:
        raise ValueError(f"images={str(folder)!r}: holds no picture ({', '.join(_PICTURES)})")
    for file in files:
        beside = file.with_suffix(".txt")
        caption = listed.get(file.name)
        if caption is None and beside.is_file():
            caption = beside.read_text(encoding="utf-8").strip()
        if caption is None:
            raise ValueError(f"{file} has no caption: neither {beside.name} nor a line in metadata.jsonl")
        yield file, caption


def _read(path: Path, config: Distillation, pipe: Any) -> Tensor:
    """(1, 3, H, W) in [-1, 1]: scaled until it covers the size, and cut to it in the middle."""
    import numpy as np
    from PIL import Image

    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    factor = max(config.width / picture.width, config.height / picture.height)
    size = (
        max(config.width, round(picture.width * factor)),
        max(config.height, round(picture.height * factor)),
    )
    picture = picture.resize(size, Image.Resampling.LANCZOS)
    left, top = (size[0] - config.width) // 2, (size[1] - config.height) // 2
    picture = picture.crop((left, top, left + config.width, top + config.height))
    values = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    return values.to(pipe.vae.device, pipe.vae.dtype)
