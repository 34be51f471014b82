"""The app in a browser: generate, stop, bad input, two persons at once; with the shipped model, at 128 px."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE
from typing import Any

import numpy as np
import pytest

from tests.demos import chromium

pytest.importorskip("gradio", minversion="6.0", reason="the app needs gradio (extra demo)")
pytestmark = pytest.mark.xdist_group("app")  # one app and one browser, with --dist loadgroup
ROOT = Path(__file__).parent.parent.parent


@dataclass
class Served:
    """The app while it runs: its address, the folder that it was started in, its process."""

    url: str
    folder: Path
    process: Any


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """``vidattn demo`` in a process and a temporary folder of its own."""
    here = tmp_path_factory.mktemp("app")
    (here / "models").mkdir()
    command = [
        sys.executable,
        "-m",
        "vidattn.cli",
        "demo",
        "--models",
        str(here / "models"),
        "--device",
        "cpu",
    ]
    environment = os.environ | {"TMPDIR": str(here), "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    with (here / "errors").open("w") as errors:
        process = subprocess.Popen(command, cwd=here, env=environment, stdout=PIPE, stderr=errors, text=True)
    assert process.stdout is not None
    said = process.stdout.readline()
    assert "http://127.0.0.1:" in said, (here / "errors").read_text()
    yield Served(said.split()[2], here, process)
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if reason := chromium.missing():
        pytest.skip(reason)
    with chromium.browser(tmp_path_factory.mktemp("profile")) as made:
        yield made


@pytest.fixture(scope="module")
def page(app: Served, driver: Any) -> chromium.Page:
    """The first person's window."""
    return chromium.Page(driver, app.url)


def done(page: chromium.Page) -> str:
    return page.wait(lambda: "PSNR" in page.state() and page.state(), "the end of both runs")


def test_the_page_builds_and_is_for_this_machine_only(app: Served):
    page = json.loads(chromium.fetch(f"{app.url.rstrip('/')}/config"))
    assert app.url.startswith("http://127.0.0.1:")
    assert page["title"] == "vidattn"
    assert not page["analytics_enabled"]
    assert {each["api_visibility"] for each in page["dependencies"]} == {"private"}
    tabs = [each["props"].get("label") for each in page["components"] if each["type"] == "tabitem"]
    assert {"Picture", "High resolution", "Attention", "Video"} <= set(tabs)
    models = [
        each["props"]["choices"] for each in page["components"] if each["props"].get("label") == "Model"
    ]
    assert models == [[["emoji-flux", "emoji-flux"]]] * 3  # no model for clips is there


def test_generate_patched_and_dense(page: chromium.Page):
    page.order(size=128, steps=2, seed=3)
    page.wait(lambda: "25 of 256" in page.text(".va-facts-box"), "the drawing of a 5x5 window")
    page.click(".va-go")
    said = done(page)
    assert "times as" in said
    assert "attention pairs computed" in said
    dense, patched = (np.asarray(picture.convert("RGB")) for picture in page.pictures())
    assert dense.shape == patched.shape == (128, 128, 3)
    assert (dense != patched).any()
    page.tab("Python")
    lines = page.wait(lambda: page.text(".va-code .cm-content"), "the Python lines")
    compile(lines, "lines", "exec")  # that they make this picture again, test_app.py shows
    for part in ("two 3d bicycle on a yellow background", "manual_seed(3)", "neighborhood:window=5x5"):
        assert part in lines
    page.tab("What ran")
    assert "neighborhood:window=5x5" in page.text(".va-report-box")


def test_the_drawing_follows_a_click_and_the_sliders(page: chromium.Page):
    from selenium.webdriver.common.action_chains import ActionChains

    page.order(window=5)
    page.wait(lambda: "25 of 256" in page.text(".va-facts-box"), "the drawing of a 5x5 window")
    before = page.text(".va-facts-box")
    image = page.find(".va-drawing img")
    ActionChains(page.driver).move_to_element_with_offset(image, -80, -100).click().perform()
    page.settle(before)
    assert "y=8, x=8" in before
    assert "y=8, x=8" not in page.text(".va-facts-box")
    page.order(window=7)
    page.wait(lambda: "49 of 256" in page.text(".va-facts-box"), "the drawing of a 7x7 window")


def test_stop_ends_the_denoising(page: chromium.Page):
    page.order(size=128, steps=50)
    page.click(".va-go")
    page.wait(lambda: "Patched: step" in page.state() and "step 0" not in page.state(), "the first step")
    page.click(".va-stop")
    started = time.monotonic()
    page.wait(lambda: page.state() == "Stopped.", "the stop")
    # a step takes about a second; two times fifty would take minutes, and end with pictures
    assert time.monotonic() - started < 30
    page.order(steps=2, seed=4)  # and the next run is free to go
    page.click(".va-go")
    done(page)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        (".va-size input", "250", "250x250: both must be multiples of 8"),
        (".va-size input", "cat", "'cat' is not a size"),
        (".va-prompt textarea", " ", "The prompt is empty"),
        (".va-model input", "/etc", "only folders allowed at launch"),
    ],
)
def test_bad_input_is_answered_in_words(page: chromium.Page, field: str, value: str, words: str):
    good = page.find(field).get_attribute("value")
    page.fill(field, value)
    page.click(".va-go")
    page.wait(lambda: words in page.state(), words)
    page.wait(lambda: words in page.text(".toast-body"), "the message")
    page.click(".toast-close")
    page.fill(field, good)


def test_the_other_tabs(page: chromium.Page):
    page.tab("Video")  # the folder of models is empty
    page.wait(lambda: "vidattn demo --models FOLDER" in page.text(".va-needed"), "what is needed")
    page.tab("Attention")
    page.wait(lambda: page.find(".va-look input[type=number]"), "its controls")
    page.fill(".va-size input", 128)
    page.fill(".va-steps input[type=number]", 2)
    page.fill(".va-look input[type=number]", 2)
    page.click(".va-go")
    page.wait(lambda: "Step 2. On average" in page.state(), "the heat map")
    assert page.find(".va-heat img")
    page.tab("Picture")


def test_two_persons_get_their_own_pictures(app: Served, page: chromium.Page):
    other = chromium.Page(page.driver, app.url, new=True)
    other.order(steps=2, seed=22)
    page.focus()
    page.order(steps=3, seed=11)
    page.click(".va-go")
    other.focus()
    other.click(".va-go")
    other.wait(lambda: "Waiting: 1 run is before yours" in other.state(), "its turn")
    done(other)
    mine = {key: other.pictures()[1].info[key] for key in ("seed", "num_inference_steps")}
    page.focus()
    done(page)
    assert mine == {"seed": "22", "num_inference_steps": "2"}
    info = page.pictures()[1].info
    assert (info["seed"], info["num_inference_steps"]) == ("11", "3")


def test_nothing_leaves_the_machine_or_the_apps_folder(app: Served, page: chromium.Page):
    if not page.pictures():  # when this test is run on its own
        page.order(steps=1)
        page.click(".va-go")
        done(page)
    asked = page.addresses()
    assert len(asked) > 10
    assert {url.split("/")[2] for url in asked} == {app.url.split("/")[2]}
    (own,) = app.folder.glob("vidattn-app-*")
    source = page.driver.find_element("css selector", ".va-result img").get_attribute("src")
    assert f"/gradio_api/file={own}/" in source
    for path in ("/etc/passwd", str(ROOT / "pyproject.toml"), f"{own}/../errors"):
        with pytest.raises(OSError, match=r"40[34]"):
            chromium.fetch(f"{app.url.rstrip('/')}/gradio_api/file={path}")
    assert {path.name for path in app.folder.iterdir()} == {"models", "errors", own.name}
    app.process.send_signal(signal.SIGTERM)
    app.process.wait(30)
    assert {path.name for path in app.folder.iterdir()} == {"models", "errors"}
    assert "Traceback" not in (app.folder / "errors").read_text()
