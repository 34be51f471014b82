"""Makes the screenshots of docs/app.md: drives the app in headless Chromium and saves what it shows.

Needs Debian's chromium and chromium-driver, and selenium. About three minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from tests.demos.chromium import Page, browser

ROOT = Path(__file__).parent.parent.parent
VIEW = (1500, 1180)


@contextmanager
def served(models: Path) -> Iterator[str]:
    """The app's address while it runs."""
    command = [sys.executable, "-m", "vidattn.cli", "demo", "--models", str(models), "--device", "cpu"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().split()[2]
    finally:
        process.terminate()
        process.wait()


def save(page: Page, path: Path) -> None:
    """What the window shows, in few colours, so that the repository stays small."""
    time.sleep(1.0)  # transitions
    page.driver.execute_script("window.scrollTo(0, 0); document.activeElement.blur()")
    time.sleep(0.5)
    page.driver.save_screenshot(str(path))
    with Image.open(path) as image:
        image.convert("RGB").quantize(255, dither=Image.Dither.NONE).save(path, optimize=True)


def picture(page: Page, out: Path, steps: int) -> None:
    """The first tab, with a result at 256 px."""
    page.fill(".va-steps input[type=number]", steps)
    page.click(".va-go")
    page.wait(lambda: "times as" in page.state(), "both pictures")
    save(page, out / "app-picture.png")


def others(page: Page, out: Path, steps: int) -> None:
    """The other tabs."""
    page.tab("Attention")
    page.click(".va-go")
    page.wait(lambda: "On average" in page.state(), "the heat map")
    save(page, out / "app-attention.png")
    page.tab("High resolution")
    page.fill(".va-size input", "384")
    page.fill(".va-first-steps input[type=number]", steps)
    page.click(".va-go")
    page.wait(lambda: page.state() == "Done.", "all stages")
    save(page, out / "app-high-resolution.png")


def video(page: Page, out: Path) -> None:
    """The tab for clips, with a tiny model of random weights: it shows the layout, not pictures."""
    page.tab("Video")
    page.wait(lambda: page.find(".va-drawing img"), "the first drawing")
    page.fill(".va-steps input[type=number]", 4)
    page.fill(".va-dense input[type=number]", 0)
    for number in range(3):
        page.fill(".va-control-neighborhood-window input[type=number]", 7 if number else 3, number)
    page.click(".va-go")
    page.wait(lambda: "times as" in page.state(), "both clips")
    save(page, out / "app-video.png")


def main(argv: list[str] | None = None) -> None:
    """Make all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "images")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--only", choices=("picture", "others", "video"))
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        models, profile = Path(folder) / "models", Path(folder) / "profile"
        models.mkdir()
        if arguments.only in (None, "video"):
            from tests.patches import tiny_pipelines

            tiny_pipelines.build("wan").save_pretrained(models / "tiny-wan")
        with served(models) as url, browser(profile, *VIEW) as driver:
            page = Page(driver, url)
            page.patience = 900
            shots: dict[str, Any] = {
                "picture": lambda: picture(page, arguments.output, arguments.steps),
                "others": lambda: others(page, arguments.output, arguments.steps),
                "video": lambda: video(page, arguments.output),
            }
            for name, shoot in shots.items():
                if arguments.only in (None, name):
                    shoot()


if __name__ == "__main__":
    main()
