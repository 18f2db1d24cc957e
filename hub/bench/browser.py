"""A headless Chromium for the bench: Playwright drives it, as in the tests."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from typing import Any

from lineside.errors import LinesideError

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
SIZE = {"width": 1440, "height": 1000}


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A browser (playwright.sync_api.Browser). Raises LinesideError where Playwright or Chromium is missing."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise LinesideError(
            "playwright", "is not installed", "pip install '.[dev]', or leave page and live out"
        ) from error
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        raise LinesideError(
            "chromium", "is not on this machine", "apt-get install chromium, or leave page and live out"
        )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()
