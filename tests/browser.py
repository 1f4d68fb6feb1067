"""Headless Chromium for the pages; a test that needs it is skipped where there is none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


LEGIBLE = """() => {
  const shown = (e) => e.checkVisibility() && e.getClientRects().length > 0, faults = [];
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => {
    const [r, g, b] = numbers(colour).map((c) => (c / 255 <= 0.03928 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const colour = getComputedStyle(e).backgroundColor;
      if ((numbers(colour)[3] ?? 1) === 1) return colour;
    }
    return getComputedStyle(document.body).backgroundColor;
  };
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; (node = walk.nextNode());) {
    const e = node.parentElement, style = getComputedStyle(e), svg = e.closest("svg"), text = node.textContent.trim();
    if (!text || ["SCRIPT", "STYLE", "OPTION", "TITLE", "title", "NOSCRIPT"].includes(e.tagName) || !shown(e)) continue;
    const size = parseFloat(style.fontSize) * (svg ? e.getScreenCTM().a : 1);
    if (size < 12) faults.push(`${text}: ${size} pixels`);
    const [a, b] = [light(svg ? style.fill : style.color), light(behind(e))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) faults.push(`${text}: contrast ${(a + 0.05) / (b + 0.05)}`);
  }
  for (const e of document.querySelectorAll("body *")) {
    const box = e.getBoundingClientRect();
    if (shown(e) && box.width && (box.right > innerWidth + 0.5 || box.left < -0.5) && !e.closest("noscript"))
      faults.push(`${e.tagName} ${e.className.baseVal ?? e.className} from ${box.left} to ${box.right}: ${e.textContent.slice(0, 40)}`);
    if (e.matches(".scroll") && e.scrollWidth > e.clientWidth) faults.push(`scrolls sideways: ${e.textContent.slice(0, 40)}`);
  }
  if (document.documentElement.scrollWidth > innerWidth) faults.push("the page scrolls sideways");
  for (const svg of document.querySelectorAll("figure svg")) {
    const titles = ["x", "y"].map((axis) => svg.querySelector(`[aria-label="${axis}-axis label"]`)?.textContent ?? "");
    if (svg.querySelector("[aria-label='x-axis tick label']") && !titles.every((t) => /[(].+[)]/.test(t))) faults.push(`no unit: ${titles}`);
    if (Math.abs(svg.getBoundingClientRect().width - svg.parentElement.clientWidth) > 1) faults.push("a picture is not as wide as there is room");
  }
  return faults;
}"""
"""What is wrong with a page as it stands: letters of less than 12 pixels, a contrast of less than 4.5 (WCAG AA), what
lies outside the window or has to be scrolled sideways, axes without a unit, pictures that were not drawn for the width."""


def faults(page: Any) -> dict[str, list[str]]:
    """What is `LEGIBLE` of a page by width and colours: as on a screen and on a telephone, light and dark."""
    found = {}
    for width, scheme in product((1280, 400), ("light", "dark")):
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": width, "height": 900})
        page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        found[f"{width} {scheme}"] = page.evaluate(LEGIBLE)
    return {key: said for key, said in found.items() if said}


@contextmanager
def browser() -> Iterator[Any]:
    """A browser, for several pages one after the other."""
    sync = pytest.importorskip("playwright.sync_api")
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if not found:
        pytest.skip("needs Chromium")
    with sync.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=found)
        try:
            yield started
        finally:
            started.close()


@contextmanager
def shown(browser: Any, path: Path, refused: tuple[str, ...] = ()) -> Iterator[Any]:
    """The page from disk without network; at the end it must have asked for nothing, and complained of nothing but what
    was to be `refused`."""
    asked: list[str] = []
    complaints: list[str] = []
    context = browser.new_context(offline=True)
    try:
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
        page.goto(path.as_uri())
        yield page
    finally:
        context.close()
    assert asked == [path.as_uri()]
    assert len(complaints) == len(refused), complaints
    assert all(part in text for part, text in zip(refused, complaints, strict=True)), complaints


@contextmanager
def opened(path: Path, refused: tuple[str, ...] = ()) -> Iterator[Any]:
    """One page, as `shown`."""
    with browser() as started, shown(started, path, refused) as page:
        yield page
