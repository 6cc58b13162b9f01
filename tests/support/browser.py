"""A person in Prefect's UI: clicks, typing, and screenshots."""

from __future__ import annotations

import io
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

PATIENCE_MS = 240_000
"""A busy machine takes this long to draw a page."""


@contextmanager
def chromium(*options: str) -> Iterator[Browser]:
    """Debian's Chromium, or playwright's own, without a window. ``options`` are further arguments of it."""
    from playwright.sync_api import sync_playwright

    found = shutil.which("chromium")
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # root has none
    with sync_playwright() as play:
        yield play.chromium.launch(executable_path=found, args=[*sandbox, *options])


def save_screenshot(page: Page, file: Path) -> None:
    """Save what a page shows on the screen, with few colours so that the file is small."""
    drawn = Image.open(io.BytesIO(page.screenshot(animations="disabled"))).convert("RGB")
    drawn.quantize(128, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(file, optimize=True)


class Visitor:
    """A person before one screen.

    Attributes:
        other_hosts: addresses beyond this machine that the pages asked.
    """

    def __init__(self, browser: Browser, address: str, images: Path, *, phone: bool = False, auth: tuple[str, str] | None = None) -> None:
        size = {"width": 390, "height": 844} if phone else {"width": 1280, "height": 900}
        credentials: Any = {"username": auth[0], "password": auth[1]} if auth else None  # asked for by the browser itself, not by the page
        self.page: Page = browser.new_page(viewport=size, device_scale_factor=2 if phone else 1, is_mobile=phone, http_credentials=credentials)  # type: ignore[arg-type]
        self._middle = (size["width"] / 2, size["height"] * 0.8)
        self.page.set_default_timeout(PATIENCE_MS)
        self.page.add_init_script("localStorage.setItem('color-scheme', JSON.stringify('light'))")
        self.address, self.images = address, images
        self.other_hosts: list[str] = []
        self.page.on("request", lambda request: self._note(request.url))

    def _note(self, url: str) -> None:
        if not url.startswith((self.address, "data:", "blob:")):
            self.other_hosts.append(url)

    def opens(self, path: str) -> None:
        """Go to a page of the UI."""
        self.page.goto(f"{self.address}/{path}", wait_until="load")

    def sees(self, text: str, *, first: bool = True) -> Locator:
        """Wait until a text is on the page."""
        found = self.page.get_by_text(text, exact=True)
        found = found.first if first else found.last
        found.wait_for()
        return found

    def clicks(self, text: str) -> None:
        """Click on the element with exactly this text."""
        self.page.get_by_text(text, exact=True).first.click()

    def follows_below(self, text: str) -> None:
        """Scroll down to the link with exactly this text, and open its address: Prefect's lists hold only what is on the screen."""
        from playwright.sync_api import TimeoutError as NotThere

        found = self.page.get_by_text(text, exact=True).first
        for _ in range(60):
            with suppress(NotThere):
                if address := found.evaluate("one => one.closest('a')?.href", timeout=2000):
                    self.page.goto(address, wait_until="load")  # a click on a slow page may arrive twice, the second time on the next page
                    return
            self.page.mouse.move(*self._middle)
            self.page.mouse.wheel(0, 250)
        raise AssertionError(f"no link on the page is called {text}")

    def signs_in(self, password: str) -> None:
        """Give the login page the password; wait for the page that it was in front of."""
        self.opens("deployments")
        self.page.locator("input[type=password]").fill(password)
        self.presses("Login")
        self.page.wait_for_url(re.compile(r"/deployments$"))
        self.opens("deployments")  # without the messages of the requests before the password

    def presses(self, name: str) -> None:
        """Press the first button with a name."""
        self.page.get_by_role("button", name=name, exact=True).first.click()

    def follows(self, name: str) -> None:
        """Follow the first link with a name."""
        self.page.get_by_role("link", name=name, exact=True).first.click()

    def open_run_form(self, deployment_id: str) -> None:
        """Open the form of a deployment's run, as docs/biologist.md says."""
        self.opens(f"deployments/deployment/{deployment_id}")
        self.presses("Run")
        self.clicks("Custom run")
        self.page.get_by_role("button", name="Submit", exact=True).wait_for()

    def submits(self) -> None:
        """Send the form of a run; wait for the deployment's page."""
        self.presses("Submit")
        self.page.wait_for_url(re.compile(r"/deployments/deployment/[^/]+$"))

    def shot(self, name: str, *waiting_for: str) -> None:
        """Save a screenshot of the page once it is drawn."""
        for text in waiting_for:
            self.sees(text)
        self.page.wait_for_load_state("networkidle")
        save_screenshot(self.page, self.images / f"{name}.png")
