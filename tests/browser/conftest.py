"""One browser for all tests of the folder; a page in it may ask the network for nothing."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

Opener = Callable[..., "sync_api.Page"]


@pytest.fixture(scope="session")
def browser() -> Iterator["sync_api.Browser"]:
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser) -> Iterator[Opener]:
    """Opens a file or an address; whatever else it asks for, says or runs fails the test in the end."""
    contexts, faults = [], []

    def opened(place: Path | str, width: int = 1100, dark: bool = False) -> "sync_api.Page":
        context = browser.new_context(
            viewport={"width": width, "height": 800}, color_scheme="dark" if dark else "light"
        )
        contexts.append(context)
        page = context.new_page()
        address = place if isinstance(place, str) else place.resolve().as_uri()

        def asked(route) -> None:
            if route.request.url.partition("#")[0].startswith(address.partition("#")[0]):
                route.continue_()
            else:
                faults.append(route.request.url)
                route.abort()

        page.route(lambda url: not url.startswith("data:"), asked)
        page.on("dialog", lambda dialog: faults.append(dialog.message))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page.goto(address)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert faults == []
