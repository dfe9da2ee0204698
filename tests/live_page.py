"""The live page in a browser: what a person does with it, and what they see. Of its tests only."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

expect = pytest.importorskip("playwright.sync_api", reason="needs playwright").expect
expect.set_options(timeout=10_000)

Page = Any  # playwright's, which need not be there
Visit = Callable[..., Page]

DESK, PHONE = (1280, 800), (390, 844)
SENTENCE = "A green screen."  # what the stand-in answers
UNCHANGED = "Unchanged, waiting"

# Records what PAINT draws for frame i, as WebM in base64.
_CLIP = """async () => {
    const canvas = Object.assign(document.createElement('canvas'), {width: 160, height: 120});
    const pen = canvas.getContext('2d');
    const recorder = new MediaRecorder(canvas.captureStream(25), {mimeType: 'video/webm'});
    const parts = [];
    recorder.ondataavailable = (event) => parts.push(event.data);
    const stopped = new Promise((resolve) => { recorder.onstop = resolve; });
    recorder.start();
    for (let i = 0; i < 16; i++) {
        PAINT
        await new Promise((resolve) => setTimeout(resolve, 40));
    }
    recorder.stop();
    await stopped;
    const bytes = new Uint8Array(await new Blob(parts).arrayBuffer());
    return btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(''));
}"""
_HAND_OVER = """([event, content]) => {
    const given = new DataTransfer();
    if (content) {
        const bytes = Uint8Array.from(atob(content), (c) => c.charCodeAt(0));
        given.items.add(new File([bytes], 'red.png', {type: 'image/png'}));
    } else given.setData('text/uri-list', 'https://example.com/red.png');
    const options = {bubbles: true, cancelable: true, dataTransfer: given, clipboardData: given};
    const kind = event === 'drop' ? DragEvent : ClipboardEvent;
    document.querySelector('#stage').dispatchEvent(new kind(event, options));
}"""
_NOTE_STATES = """() => {
    const pill = document.querySelector('#state');
    window.states = [];
    new MutationObserver(() => states.push(pill.textContent)).observe(pill, {childList: true});
}"""


def png(colour: str = "red", size: tuple[int, int] = (200, 100), mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, colour).save(file, "PNG")
    return file.getvalue()


def clip(page: Page, paint: str) -> bytes:
    """A short video, by JavaScript that draws frame i of 16 with `pen`."""
    return base64.b64decode(page.evaluate(_CLIP.replace("PAINT", paint)))


def show(page: Page, content: bytes, name: str = "picture.png", kind: str = "image/png") -> None:
    page.set_input_files("#file", {"name": name, "mimeType": kind, "buffer": content})


def hand_over(page: Page, event: str, content: bytes | None) -> None:
    """Drops or pastes a picture, or a link to one."""
    page.evaluate(_HAND_OVER, [event, content and base64.b64encode(content).decode()])


def film(page: Page) -> None:
    page.get_by_role("button", name="Camera", exact=True).click()
    page.wait_for_selector("#moving:not([hidden])")
    soon(lambda: page.evaluate("Boolean(visible())"))


def watch(page: Page) -> None:
    page.get_by_role("switch", name="Continuous").check()


def soon(holds: Callable[[], object], limit_s: float = 15) -> None:
    end = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.02)


def says(page: Page, text: str) -> None:
    expect(page.locator("#text")).to_have_text(text)


def complains(page: Page, text: str) -> None:
    expect(page.get_by_role("alert")).to_contain_text(text)


def is_in_state(page: Page, text: str) -> None:
    expect(page.locator("#state")).to_have_text(text)


def notes_states(page: Page) -> Callable[[str], bool]:
    """Whether the page was in a state at any time from now on: some last less than a look takes."""
    page.evaluate(_NOTE_STATES)
    return lambda text: text in page.evaluate("states")
