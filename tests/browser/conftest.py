"""A headless Chromium of the system, if there is one, and pages for it to show."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def chromium() -> str | None:
    """Return the path of a Chromium: what PARAMDELTA_CHROMIUM says, or one by its usual names."""
    chosen = os.environ.get("PARAMDELTA_CHROMIUM")
    return chosen or next((path for name in NAMES if (path := shutil.which(name))), None)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One Chromium for all tests of a process."""
    path = chromium()
    if path is None:
        pytest.skip("no Chromium on this machine (apt install chromium, or set PARAMDELTA_CHROMIUM)")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        # Root may not use the sandbox; what is shown here was made by the tests themselves.
        made = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield made
        made.close()


@dataclass
class Shown:
    """A page in the browser, and everything that it complained of or asked for."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def value(self, script: str) -> Any:
        """Return what a script finds in the page."""
        return self.page.evaluate(script)


@pytest.fixture
def show(browser: Browser) -> Iterator[Callable[..., Shown]]:
    """Open a file in a context of its own: of a colour scheme, a width, with or without JavaScript."""
    contexts = []

    def opened(file: Path, scheme: Any = "light", width: int = 1100, javascript: bool = True) -> Shown:
        context = browser.new_context(
            color_scheme=scheme, viewport={"width": width, "height": 900}, java_script_enabled=javascript
        )
        contexts.append(context)
        shown = Shown(context.new_page())
        shown.page.on("console", lambda message: shown.complaints.append(message.text))
        shown.page.on("pageerror", lambda error: shown.complaints.append(str(error)))
        shown.page.on("dialog", lambda dialog: shown.complaints.append(dialog.message))
        shown.page.on("request", lambda request: shown.requests.append(request.url))
        shown.page.goto(file.as_uri())
        return shown

    yield opened
    for context in contexts:
        context.close()
