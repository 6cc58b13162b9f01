"""The pages in a real browser, on a desk and on a phone: no serious accessibility violation, no sideways scrolling, no other host, small.

axe-core is not part of this project: ``npm install --prefix ~/.cache/animl-pipeline/axe axe-core``.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from animl_pipeline.config.settings import Settings
from animl_pipeline.storage.store import open_store
from tests.support.browser import chromium, save_screenshot
from tests.support.paths import ROOT
from tests.support.report_store import AUTH, fill_with_reports, report_server
from tests.support.service_pages import fill_with_service_pages

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

AXE = Path(os.environ.get("AXE_CORE", "~/.cache/animl-pipeline/axe/node_modules/axe-core/axe.min.js")).expanduser()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(importlib.util.find_spec("playwright") is None, reason="expected playwright (the dev extra), found none"),
    pytest.mark.skipif(shutil.which("chromium") is None, reason="expected a chromium (Debian's), found none"),
    pytest.mark.skipif(not AXE.exists(), reason="expected axe-core (AXE_CORE), found none"),
]
MOST_BYTES = 5_000_000
IN_SERVICE = ["monitor", "review", "replay"]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Addresses of a report, the index, a comparison, and the pages about a model in service, on the report server."""
    folder = tmp_path_factory.mktemp("pages")
    store = open_store(Settings(store=str(folder / "store"), cache=folder / "cache"))
    first, second, *_ = fill_with_reports(store)
    in_service = fill_with_service_pages(store, folder)
    with report_server(folder, str(folder / "store")) as address:
        yield {
            "report": f"{address}/steps/evaluation/{first.evaluation.key}/report.html",
            "index": f"{address}/",
            "comparison": f"{address}/compare?a={first.package.digest}&b={second.package.digest}",
            **{name: f"{address}{path}" for name, path in in_service.items()},
        }


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


def _save_for_docs(page: Page, name: str, width: int) -> None:
    """Save what the docs show: the report server's own pages on a desk, the pages about a model in service also on a phone."""
    folder = ROOT / os.environ["SCREENSHOTS"]
    if name in IN_SERVICE:
        page.set_viewport_size({"width": width, "height": 1250})
        save_screenshot(page, folder / f"{name}{'-phone' if width == 390 else ''}.png")
    elif name != "report" and width == 1280:
        save_screenshot(page, folder / f"reports-{name}.png")


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["report", "index", "comparison", *IN_SERVICE])
def test_a_page_is_accessible_narrow_and_small(pages: dict[str, str], browser: Browser, name: str, scheme: Any, width: int) -> None:
    context = browser.new_context(
        viewport={"width": width, "height": 844}, color_scheme=scheme, http_credentials={"username": AUTH[0], "password": AUTH[1]}
    )
    page = context.new_page()
    asked: list[str] = []
    refused: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: refused.append(message.text))
    answer = page.goto(pages[name])
    assert answer is not None
    assert len(answer.body()) < MOST_BYTES
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    if "SCREENSHOTS" in os.environ and scheme == "light":
        _save_for_docs(page, name, width)
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert [url for url in asked if not url.startswith(("data:", pages["index"]))] == []
    assert [text for text in refused if "Content Security Policy" in text] == []
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("axe.run(document, {runOnly: ['wcag2a', 'wcag2aa', 'wcag21aa', 'best-practice']})")
    serious = [f"{v['id']}: {v['nodes'][0]['html'][:200]}" for v in found["violations"] if v["impact"] in {"serious", "critical"}]
    assert serious == []
    assert len(found["passes"]) > 10
    context.close()
