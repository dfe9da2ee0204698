"""The page with the real server shows the model's answer."""

from __future__ import annotations

import base64
import re
from typing import Any

import pytest
from live_page import Visit, expect, film, png, show, soon, watch
from served import NAME, Server

from fastvlm_mlx import VLM


@pytest.fixture
def origin(server: Server) -> str:
    return server.origin


def test_page_shows_the_models_answer(visit: Visit, server: Server, vlm: VLM) -> None:
    page = visit()
    sent: list[Any] = []
    page.on("request", lambda request: sent.append(request.post_data_json) if request.post_data else None)
    expect(page.locator("#model")).to_have_text(f"{NAME} · 256 px · float32")
    show(page, png("red", (256, 256)))
    page.click("#ask")
    expect(page.locator("#ttft")).to_have_text(re.compile(r"^\d+ ms$|^\d+\.\d\d s$"))
    soon(lambda: page.locator("#parts").text_content(), 60)
    [asked] = sent
    [shown, question] = asked["messages"][0]["content"]
    picture = base64.b64decode(shown["image_url"]["url"].partition(",")[2])
    answer = vlm.generate(vlm.prompt(question["text"], [picture]), max_tokens=asked["max_tokens"])
    cut = " …" if answer.reason == "length" else ""  # the page shows it
    assert page.locator("#text").text_content() == answer.text + cut


def test_continuous_mode_sends_camera_frames(visit: Visit, server: Server) -> None:
    page = visit()
    film(page)
    before = server.engine.features.misses
    watch(page)
    soon(lambda: server.engine.features.misses >= before + 3, 60)  # only frames that differ
    page.get_by_role("switch", name="Continuous").uncheck()
    page.keyboard.press("Escape")
    soon(server.idle, 60)
