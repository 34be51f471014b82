"""Drives the app's page in headless Chromium, as a person would."""

from __future__ import annotations

import io
import json
import shutil
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    " --disable-component-update --disable-sync --disable-dev-shm-usage --force-device-scale-factor=1"
).split()
PATIENCE = 120
"""Seconds to wait for anything: slow machines run many tests at a time."""


def missing() -> str:
    """Why no browser can be driven here, or ""."""
    names = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    if names:
        return f"{' and '.join(names)} not installed (apt-get install chromium chromium-driver)"
    try:
        import selenium  # noqa: F401
    except ImportError:
        return "selenium not installed (pip install selenium)"
    return ""


@contextmanager
def browser(profile: Path, width: int = 1500, height: int = 1100) -> Iterator[Any]:
    """A Chromium with an empty profile, closed afterwards."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in (*FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()


class Page:
    """One window with the app: one person.

    Args:
        driver: the browser.
        url: of the app.
        new: open a new window, instead of using the one that is there.
    """

    def __init__(self, driver: Any, url: str, new: bool = False) -> None:
        self.driver, self.patience = driver, PATIENCE
        if new:
            driver.switch_to.new_window("window")
        driver.get(url)
        self.window = driver.current_window_handle
        self.wait(lambda: self.find(".va-drawing img"), "the first drawing")

    def focus(self) -> None:
        """Go to this person's window."""
        self.driver.switch_to.window(self.window)

    def find(self, selector: str, number: int = 0) -> Any:
        """The first visible element, or the one of that number, or None."""
        found = self.driver.find_elements("css selector", selector)
        visible = [element for element in found if element.is_displayed()]
        return visible[number] if number < len(visible) else None

    def wait(self, condition: Callable[[], Any], what: str) -> Any:
        """The condition's first true value."""
        from selenium.common.exceptions import StaleElementReferenceException

        end = time.monotonic() + self.patience
        while time.monotonic() < end:
            try:
                if value := condition():
                    return value
            except StaleElementReferenceException:
                pass  # the page was drawn anew in between
            time.sleep(0.1)
        raise AssertionError(f"waited {self.patience} s for {what}; the page says {self.state()!r}")

    def fill(self, selector: str, text: object, number: int = 0) -> None:
        """Type into a field, over what stands there; ``number`` counts fields of that kind."""
        from selenium.webdriver.common.keys import Keys

        field = self.wait(lambda: self.find(selector, number), selector)
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", field)
        field.click()
        field.send_keys(Keys.CONTROL, "a")
        # a list of choices stays open after a tab
        field.send_keys(str(text), Keys.ENTER if field.get_attribute("role") == "combobox" else Keys.TAB)

    def click(self, selector: str) -> None:
        """Click what is there, wherever it is on the page."""
        element = self.wait(lambda: self.find(selector), selector)
        # an open list or a message may lie over it for a moment
        self.driver.execute_script("arguments[0].click()", element)

    def tab(self, name: str) -> None:
        """Open a tab by its name."""
        tabs = self.driver.find_elements("css selector", "button[role=tab]")
        next(tab for tab in tabs if tab.text == name and tab.is_displayed()).click()

    def text(self, selector: str) -> str:
        """What is to be read there."""
        element = self.find(selector)
        return element.text if element is not None else ""

    def state(self) -> str:
        """What the app says about the run."""
        return self.text(".va-status")

    def settle(self, old: str) -> str:
        """The next state of the drawing's facts after ``old``."""
        return self.wait(
            lambda: self.text(".va-facts-box") not in ("", old) and self.text(".va-facts-box"), "facts"
        )

    def order(self, size: object = 128, steps: int = 2, seed: int = 2, window: int = 5) -> None:
        """Set up a small run."""
        self.fill(".va-size input", size)
        self.fill(".va-steps input[type=number]", steps)
        self.fill(".va-dense input[type=number]", 0)
        self.fill(".va-seed input", seed)
        for number in range(2):
            self.fill(".va-control-neighborhood-window input[type=number]", window, number)

    def pictures(self) -> list[Image.Image]:
        """The pictures under the before/after slider: dense, patched."""
        sources = [
            e.get_attribute("src") for e in self.driver.find_elements("css selector", ".va-result img")
        ]
        return [Image.open(io.BytesIO(fetch(source))) for source in sources]

    def addresses(self) -> set[str]:
        """Whatever the browser asked the network for since the last call."""
        entries = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [e["params"]["request"]["url"] for e in entries if e["method"] == "Network.requestWillBeSent"]
        return {url for url in sent if url.startswith(("http", "ws"))}


def fetch(url: str) -> bytes:
    """The bytes at an address of this machine."""
    with urllib.request.urlopen(url) as answer:
        return answer.read()
