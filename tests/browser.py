"""Headless Chromium for the pages; a test that needs it is skipped where there is none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextmanager
def opened(path: Path, refused: tuple[str, ...] = ()) -> Iterator[Any]:
    """The page from disk without network; at the end it must have asked for nothing, and complained of nothing but what
    was to be `refused`."""
    sync = pytest.importorskip("playwright.sync_api")
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if not found:
        pytest.skip("needs Chromium")
    asked: list[str] = []
    complaints: list[str] = []
    with sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found)
        try:
            page = browser.new_context(offline=True).new_page()
            page.on("request", lambda request: asked.append(request.url))
            page.on("console", lambda message: complaints.append(message.text))
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
            page.goto(path.as_uri())
            yield page
        finally:
            browser.close()
    assert asked == [path.as_uri()]
    assert len(complaints) == len(refused), complaints
    assert all(part in text for part, text in zip(refused, complaints, strict=True)), complaints
