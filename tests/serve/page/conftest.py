"""A browser, a server for it, and a page that must not log errors or contact other hosts."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from stand_in import StandIn

if TYPE_CHECKING:  # tests that import this are skipped without playwright
    from live_page import Page, Visit

BROWSERS = (
    "chromium",
    "google-chrome",
    "chromium-browser",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)
INSECURE = "camera.test"  # this machine, under a name that browsers treat as insecure
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-device-for-media-stream=device-count=2",
    "--use-fake-ui-for-media-stream",
    f"--host-resolver-rules=MAP {INSECURE} 127.0.0.1",
)
REFUSED = re.compile(r"error: (Failed to load resource: (the server|net::ERR)|Permissions policy violation)")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
        found = next((path for name in (*BROWSERS, own) if (path := shutil.which(name))), None)
        if found is None:
            pytest.skip("no Chromium or Chrome here (Debian: apt-get install chromium)")
        folder = tmp_path_factory.mktemp("browser")
        launch = playwright.chromium.launch_persistent_context
        context = launch(folder, executable_path=found, headless=True, args=FLAGS)
        context.set_default_timeout(15_000)
        yield context
        context.close()


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    with StandIn() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def origin(stand_in: StandIn) -> str:
    return stand_in.url


@pytest.fixture
def insecure_origin(stand_in: StandIn) -> str:
    return f"http://{INSECURE}:{stand_in.server_port}"


@pytest.fixture
def visit(browser: Any, stand_in: StandIn, origin: str, insecure_origin: str) -> Iterator[Visit]:
    """Open the page. Afterwards its console must be empty and all its requests to this server."""
    from live_page import DESK

    pages: list[Page] = []
    told: list[str] = []
    requests: list[str] = []

    def visit(size: tuple[int, int] = DESK, script: str = "", at: str = origin) -> Page:
        page = browser.new_page()
        pages.append(page)
        page.set_viewport_size({"width": size[0], "height": size[1]})
        page.on("console", lambda message: told.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: told.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        if script:
            page.add_init_script(script)
        page.goto(at)
        return page

    yield visit
    for page in pages:
        page.close()
    # The browser itself logs the statuses that the stand-in refuses with.
    expected = stand_in.refuses or stand_in.manners.key or stand_in.manners.headers
    assert [line for line in told if not (expected and REFUSED.match(line))] == []
    home = (f"{origin}/", f"{insecure_origin}/", "blob:", "data:")
    assert [url for url in requests if not url.startswith(home)] == []
