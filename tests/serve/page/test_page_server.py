"""The page against the real server: what the model says is what is read on the picture."""

from __future__ import annotations

import re

import pytest
from live_page import Visit, expect, film, png, show, soon, watch
from served import NAME, Server


@pytest.fixture
def origin(server: Server) -> str:
    return server.origin


def test_the_answer_is_the_models(visit: Visit, server: Server) -> None:
    page = visit()
    expect(page.locator("#model")).to_have_text(f"{NAME} · 256 px · float32")
    show(page, png("red", (256, 256)))
    asked = server.engine.features.misses
    page.click("#ask")
    expect(page.locator("#ttft")).to_have_text(re.compile(r"^\d+ ms$|^\d+\.\d\d s$"))
    soon(lambda: page.locator("#parts").text_content() and server.idle(), 60)
    assert page.locator("#text").text_content().strip()
    assert server.engine.features.misses == asked + 1


def test_the_camera_is_watched(visit: Visit, server: Server) -> None:
    page = visit()
    film(page)
    before = server.engine.features.misses
    watch(page)
    soon(lambda: server.engine.features.misses >= before + 3, 60)  # frames that differed
    page.get_by_role("switch", name="Continuous").uncheck()
    page.keyboard.press("Escape")
    soon(server.idle, 60)
