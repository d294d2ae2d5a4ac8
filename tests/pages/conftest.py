"""Headless Chromium, driven by selenium."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Text and what it stands on, by WCAG 2.2's formula; of a cell its colour over the ground.
CONTRAST = """
const over = (a, b) => a.map((v, n) => n < 3 ? v * a[3] + b[n] * (1 - a[3]) : 1);
const rgba = (text) => { const m = text.match(/[\\d.]+/g).map(Number); return [m[0], m[1], m[2], m[3] ?? 1]; };
const linear = (v) => v <= 10.3 ? v / 3294.6 : ((v / 255 + 0.055) / 1.055) ** 2.4;
const light = (c) => c.slice(0, 3).map(linear)
  .reduce((sum, v, n) => sum + v * [0.2126, 0.7152, 0.0722][n], 0);
const ground = (e) => {
  const own = e ? rgba(getComputedStyle(e).backgroundColor) : [255, 255, 255, 1];
  return own[3] === 1 ? own : over(own, ground(e.parentElement));
};
const poor = [];
for (const e of document.querySelectorAll('main *, footer')) {
  const text = [...e.childNodes].filter((n) => n.nodeType === 3).map((n) => n.textContent.trim()).join('');
  if (!text || !e.checkVisibility() || e.closest('noscript, svg, .unseen')) continue;
  const [a, b] = [light(over(rgba(getComputedStyle(e).color), ground(e))), light(ground(e))];
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (ratio < 4.5) poor.push(`${text.slice(0, 30)} ${e.className} ${ratio.toFixed(2)}`);
}
return poor;
"""


class Page:
    """One tab of a browser.

    Args:
        driver: of selenium.
    """

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, place: Path | str, *, width: int = 1280, height: int = 900) -> None:
        """Shows a file or a URL, in a window of this size; what was asked for before is forgotten."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.get_log("performance")
        self.driver.get_log("browser")
        self.driver.get(place if isinstance(place, str) else place.absolute().as_uri())

    def dark(self, is_dark: bool) -> None:
        features = [{"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def js(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def all(self, selector: str) -> list[Any]:
        from selenium.webdriver.common.by import By

        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str) -> Any:
        (found,) = self.all(selector)
        return found

    def texts(self, selector: str) -> list[str]:
        """What is shown, without white space at the ends."""
        return self.js("return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent.trim())", selector)

    def keys(self, *words: str) -> None:
        """Types into whatever has the focus."""
        from selenium.webdriver.common.action_chains import ActionChains

        for word in words:
            ActionChains(self.driver).send_keys(word).perform()

    def until(self, script: str, *arguments: Any) -> Any:
        """Waits until a script returns something true."""
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.driver, 20).until(lambda _: self.js(script, *arguments), script)

    def requests(self) -> list[str]:
        """What the page has asked for since it was opened, but data that it holds itself."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        urls = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        return [url for url in urls if not url.startswith("data:")]

    def errors(self) -> list[str]:
        """What the browser complains of."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def poor_contrast(self) -> list[str]:
        """Texts that are hard to read."""
        return self.js(CONTRAST)

    def picture(self, file: Path) -> None:
        """Writes the whole page as a PNG."""
        self.driver.save_screenshot(str(file))


@contextlib.contextmanager
def started_chromium(profile: Path, *more_flags: str) -> Iterator[Page]:
    """A browser of its own."""
    selenium = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    programs = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
    program, driver = next(filter(None, programs), None), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("no Chromium with chromedriver here")
    options = selenium.ChromeOptions()
    options.binary_location = program
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --autoplay-policy=no-user-gesture-required"
    )
    for flag in [*flags.split(), f"--user-data-dir={profile}", *more_flags]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    started = selenium.Chrome(options=options, service=selenium.ChromeService(executable_path=driver))
    yield Page(started)
    started.quit()


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with started_chromium(tmp_path_factory.mktemp("chromium")) as page:
        yield page


@pytest.fixture(scope="session")
def chromium_with_camera(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """Its camera shows a test picture, and it asks nobody whether it may."""
    flags = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
    with started_chromium(tmp_path_factory.mktemp("chromium"), *flags) as page:
        yield page


@pytest.fixture
def page(chromium: Page, tmp_path: Path) -> Iterator[Page]:
    """A tab; what it asks for at the end must lie in the test's own folder, and nothing may have gone wrong."""
    yield chromium
    folder = tmp_path.absolute().as_uri()
    assert [url for url in chromium.requests() if not url.startswith(folder)] == []
    assert chromium.errors() == []
    assert chromium.driver.title != "hacked"
