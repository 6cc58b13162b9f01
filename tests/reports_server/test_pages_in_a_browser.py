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

if TYPE_CHECKING:
    from playwright.sync_api import Browser

AXE = Path(os.environ.get("AXE_CORE", "~/.cache/animl-pipeline/axe/node_modules/axe-core/axe.min.js")).expanduser()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(importlib.util.find_spec("playwright") is None, reason="expected playwright (the dev extra), found none"),
    pytest.mark.skipif(shutil.which("chromium") is None, reason="expected a chromium (Debian's), found none"),
    pytest.mark.skipif(not AXE.exists(), reason="expected axe-core (AXE_CORE), found none"),
]
MOST_BYTES = 5_000_000


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Addresses of a report, the index and a comparison, served by the report server."""
    folder = tmp_path_factory.mktemp("pages")
    store = open_store(Settings(store=str(folder / "store"), cache=folder / "cache"))
    first, second, *_ = fill_with_reports(store)
    with report_server(folder, str(folder / "store")) as address:
        yield {
            "report": f"{address}/steps/evaluation/{first.evaluation.key}/report.html",
            "index": f"{address}/",
            "comparison": f"{address}/compare?a={first.package.digest}&b={second.package.digest}",
        }


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["report", "index", "comparison"])
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
    if "SCREENSHOTS" in os.environ and (scheme, width) == ("light", 1280) and name != "report":
        save_screenshot(page, ROOT / os.environ["SCREENSHOTS"] / f"reports-{name}.png")
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
