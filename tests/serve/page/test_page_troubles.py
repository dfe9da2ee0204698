"""Errors that the live page explains."""

from __future__ import annotations

from live_page import (
    PHONE,
    SENTENCE,
    Visit,
    complains,
    expect,
    hand_over,
    is_in_state,
    notes_states,
    png,
    says,
    show,
    soon,
    watch,
)
from stand_in import StandIn


def test_unreadable_file_is_refused_and_the_old_picture_stays(visit: Visit, stand_in: StandIn) -> None:
    page = visit()
    show(page, png())
    page.click("#ask")
    says(page, SENTENCE)
    show(page, b"not at all", "broken.png")
    complains(page, "broken.png is not a picture or video that this browser can read")
    says(page, SENTENCE)  # the old answer is still there
    hand_over(page, "drop", None)
    complains(page, "That was a link or text. Drop a file")


REFUSALS = {
    429: "The server is busy with others. Ask again in 2 seconds.",
    500: "The server failed: out of memory.",
    400: "The server refused: out of memory.",
}


def test_refusals_are_explained(visit: Visit, stand_in: StandIn) -> None:
    page = visit()
    show(page, png())
    for status, text in REFUSALS.items():
        stand_in.refuse(status, "out of memory.")
        page.click("#ask")
        complains(page, text)
        is_in_state(page, "Stopped")
    page.click("#ask")
    says(page, SENTENCE)
    expect(page.locator("#problem")).to_be_hidden()


def test_nothing_is_sent_without_a_question(visit: Visit, stand_in: StandIn) -> None:
    stand_in.manners.words = ("Well, ", *["hm, "] * 200)
    page = visit()
    show(page, png())
    page.click("#ask")
    expect(page.locator("#text")).to_contain_text("Well, hm")
    page.fill("#prompt", " ")
    page.press("#prompt", "Enter")
    complains(page, "There is no question yet. Type one")
    expect(page.locator("#prompt")).to_be_focused()
    soon(lambda: stand_in.broken_off == 1)
    is_in_state(page, "Ready")
    assert len(stand_in.asked) == 1


def test_continuous_mode_waits_for_a_busy_server(visit: Visit, stand_in: StandIn) -> None:
    page = visit()
    was_in_state = notes_states(page)
    stand_in.refuse(429, "busy")
    watch(page)
    show(page, png())
    soon(lambda: was_in_state("Server busy, again in 2 s"))
    says(page, SENTENCE)
    assert len(stand_in.asked) == 2


def test_cut_off_answers_and_stopped_servers_are_explained(visit: Visit, stand_in: StandIn) -> None:
    page = visit()
    show(page, png())
    stand_in.manners.breaks_off = True
    page.click("#ask")
    complains(page, "The answer was cut off.")
    says(page, SENTENCE)
    stand_in.go()
    page.click("#ask")
    complains(page, "This server does not answer. Check that fastvlm-mlx serve is still running")
    expect(page.locator("#model")).to_have_text("not connected")


def test_key_is_requested_and_kept_for_the_tab(visit: Visit, stand_in: StandIn) -> None:
    stand_in.manners.key = "sesame"
    page = visit()
    lock = page.get_by_role("dialog", name="This server needs a key")
    expect(page.get_by_label("Key", exact=True)).to_be_focused()
    page.keyboard.type("wrong")
    page.keyboard.press("Enter")
    expect(lock).to_contain_text("The server refused the key.")
    page.keyboard.type("sesame")
    page.keyboard.press("Enter")
    expect(lock).to_be_hidden()
    show(page, png())
    page.click("#ask")
    says(page, SENTENCE)
    assert page.evaluate("[sessionStorage['fastvlm-key'], localStorage['fastvlm-key']]") == ["sesame", None]
    page.reload()
    expect(page.locator("#model")).to_contain_text("fastvlm-tiny")
    stand_in.manners.key = "another"
    show(page, png())
    page.click("#ask")
    expect(lock).to_be_visible()
    page.get_by_role("button", name="Cancel").click()
    complains(page, "This server needs a key. Press Ask to enter it.")


def test_refused_camera_is_explained(visit: Visit, stand_in: StandIn) -> None:
    stand_in.manners.headers = {"Permissions-Policy": "camera=()"}
    page = visit()
    page.click("#film")
    complains(page, "The camera is not allowed here. Allow it in the browser's settings")
    expect(page.locator("#film")).to_have_attribute("aria-pressed", "false")


CAMERA_TROUBLES = {
    "NotFoundError": "No camera was found. Connect one",
    "NotReadableError": "The camera is in use by another program.",
    "AbortError": "The camera does not start (why not).",
}


def test_camera_that_does_not_start_is_explained(visit: Visit) -> None:
    fails = "async () => { throw new DOMException('why not', window.trouble); }"
    page = visit(PHONE, f"navigator.mediaDevices.getUserMedia = {fails};")
    for name, text in CAMERA_TROUBLES.items():
        page.evaluate("(name) => { window.trouble = name; }", name)
        page.click("#film")
        complains(page, text)


def test_insecure_address_without_camera_is_explained(visit: Visit, insecure_origin: str) -> None:
    page = visit(PHONE, at=insecure_origin)
    page.click("#film")
    complains(page, "Browsers allow the camera only on https pages and on localhost.")
    show(page, png())
    page.click("#ask")
    says(page, SENTENCE)


def test_page_works_without_storage(visit: Visit, stand_in: StandIn) -> None:
    stand_in.manners.key = "sesame"
    page = visit(
        script="""
        for (const store of ['localStorage', 'sessionStorage'])
            Object.defineProperty(window, store, {get() { throw new DOMException('', 'SecurityError'); }});"""
    )
    page.get_by_label("Key", exact=True).fill("sesame")
    page.keyboard.press("Enter")
    show(page, png())
    page.click("#ask")
    says(page, SENTENCE)
