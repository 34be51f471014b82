"""Renders the vocabulary's emoji in three drawing styles to one sprite file.

Input: a folder with the npm tarballs named in README.md (nothing is downloaded here). Output: ``sprites.npz``
with ``webp`` (all sprites as lossless WebP, concatenated bytes), ``ends`` (N,) and ``sprites.json``
(name, style, group of each sprite).
"""

from __future__ import annotations

import argparse
import io
import json
import tarfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from .vocabulary import STYLES, concepts

TARBALLS = {
    "noto": "iconify-json-noto-*.tgz",
    "flat": "iconify-json-fluent-emoji-flat-*.tgz",
    "3d": "lobehub-fluent-emoji-3d-*.tgz",
    "names": "emojibase-data-*.tgz",
}


def hex_key(text: str) -> str:
    """One spelling of a code point sequence for every source: lower case, no variation selector."""
    parts = [p.lstrip("0").rjust(4, "0") for p in text.lower().replace("_", "-").split("-") if p != "fe0f"]
    return "-".join(parts)


def open_tarball(folder: Path, key: str) -> tarfile.TarFile:
    """The one tarball of a source in ``folder``."""
    found = sorted(folder.glob(TARBALLS[key]))
    if len(found) != 1:
        raise SystemExit(
            f"--npm: expected one file {TARBALLS[key]} in {folder}, found {len(found)}; see README.md"
        )
    return tarfile.open(found[0])


def read_names(folder: Path) -> dict[str, str]:
    """Code points -> English CLDR name."""
    with open_tarball(folder, "names") as tar:
        data = json.load(tar.extractfile("package/en/data.json"))
    return {hex_key(e["hexcode"]): e["label"].lower() for e in data if "group" in e}


def vector_sources(folder: Path, style: str) -> Iterator[tuple[str, str]]:
    """(code points, SVG text) of every icon of an Iconify set."""
    with open_tarball(folder, style) as tar:
        icons = json.load(tar.extractfile("package/icons.json"))
        chars = json.load(tar.extractfile("package/chars.json"))
    for code, name in chars.items():
        icon = icons["icons"].get(name) or icons["icons"].get(
            icons.get("aliases", {}).get(name, {}).get("parent")
        )
        if icon is None:
            continue
        width, height = (icon.get(k, icons.get(k, 16)) for k in ("width", "height"))
        box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
        yield (
            hex_key(code),
            (
                f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
                f'viewBox="{box}" width="{width}" height="{height}">{icon["body"]}</svg>'
            ),
        )


def raster_sources(folder: Path) -> Iterator[tuple[str, bytes]]:
    """(code points, WebP bytes) of every 3D sprite."""
    with open_tarball(folder, "3d") as tar:
        for member in tar:
            if member.name.startswith("package/assets/") and member.name.endswith(".webp"):
                yield hex_key(Path(member.name).stem), tar.extractfile(member).read()


def draw(job: tuple[str | bytes, int]) -> bytes:
    """One sprite as lossless WebP bytes, ``size`` x ``size`` RGBA; SVGs are drawn at twice the size."""
    source, size = job
    if isinstance(source, str):
        import resvg_py  # only this phase needs it

        source = bytes(
            resvg_py.svg_to_bytes(svg_string=source, width=2 * size, height=2 * size, skip_system_fonts=True)
        )
    image = Image.open(io.BytesIO(source)).convert("RGBA")
    # "RGBa" is premultiplied: resizing it leaves no dark fringe where the sprite ends.
    image = image.convert("RGBa").resize((size, size), Image.LANCZOS).convert("RGBA")
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=True, quality=60)
    return buffer.getvalue()


def save_sprites(path: Path, blobs: list[bytes], meta: list[dict[str, str]]) -> None:
    """Writes ``path`` (.npz) and its .json side file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, webp=np.frombuffer(b"".join(blobs), np.uint8), ends=np.cumsum([len(b) for b in blobs]))
    path.with_suffix(".json").write_text(json.dumps(meta), encoding="utf-8")


def load_sprites(path: Path) -> tuple[np.ndarray, list[dict[str, str]]]:
    """Sprites (N, S, S, 4) uint8 and their metadata, as ``save_sprites`` wrote them."""
    stored = np.load(path)
    data, ends = stored["webp"].tobytes(), stored["ends"].tolist()
    images = [np.asarray(Image.open(io.BytesIO(data[a:b])).convert("RGBA")) for a, b in pairwise([0, *ends])]
    return np.stack(images), json.loads(Path(path).with_suffix(".json").read_text(encoding="utf-8"))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--npm", type=Path, required=True, help="folder with the four npm tarballs")
    parser.add_argument("--out", type=Path, required=True, help="sprites.npz to write")
    parser.add_argument("--size", type=int, default=256, help="sprite edge in pixels")
    parser.add_argument("--workers", type=int, default=None, help="processes; all cores if not given")
    args = parser.parse_args(argv)

    groups, names = concepts(), read_names(args.npm)
    missing = sorted(set(groups) - set(names.values()))
    if missing:
        raise SystemExit(f"concepts.txt names no emoji: {', '.join(missing)}")
    wanted = {code: name for code, name in names.items() if name in groups}
    jobs: list[tuple[str | bytes, int]] = []
    meta: list[dict[str, str]] = []
    for style in STYLES:
        seen = set()
        for code, source in raster_sources(args.npm) if style == "3d" else vector_sources(args.npm, style):
            name = wanted.get(code)
            if name and name not in seen:
                seen.add(name)
                jobs.append((source, args.size))
                meta.append({"name": name, "style": style, "group": groups[name]})
        if len(seen) < len(groups):
            print(f"{style}: no drawing of {', '.join(sorted(set(groups) - seen))}")
    with ProcessPoolExecutor(args.workers) as pool:
        blobs = list(pool.map(draw, jobs, chunksize=8))
    save_sprites(args.out, blobs, meta)
    print(
        f"{len(blobs)} sprites of {len(groups)} concepts, {args.size} px, "
        f"{args.out.stat().st_size / 2**20:.1f} MiB"
    )


if __name__ == "__main__":
    main()
