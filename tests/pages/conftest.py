"""Headless Chromium, driven by selenium."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HOSTILE = "</script><img src=x onerror=\"document.title='hacked'\">'\"&{{ 7*7 }}"
CHINESE, ARABIC = "打开盒子 · 开箱", "فتح الصندوق"


class Page:
    """One tab of a browser.

    Args:
        driver: of selenium.
    """

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, file: Path, *, width: int = 1280, height: int = 900) -> None:
        """Shows a file, in a window of this size; what was asked for before is forgotten."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.get_log("performance")
        self.driver.get_log("browser")
        self.driver.get(file.absolute().as_uri())

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

    def picture(self, file: Path) -> None:
        """Writes the whole page as a PNG."""
        self.driver.save_screenshot(str(file))


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
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
    for flag in [*flags.split(), f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    started = selenium.Chrome(options=options, service=selenium.ChromeService(executable_path=driver))
    yield Page(started)
    started.quit()


@pytest.fixture
def page(chromium: Page, tmp_path: Path) -> Iterator[Page]:
    """A tab; what it asks for at the end must lie in the test's own folder, and nothing may have gone wrong."""
    yield chromium
    folder = tmp_path.absolute().as_uri()
    assert [url for url in chromium.requests() if not url.startswith(folder)] == []
    assert chromium.errors() == []
    assert chromium.driver.title != "hacked"
