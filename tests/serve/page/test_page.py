"""The live page in a real browser: camera, pictures, videos, questions and answers."""

from __future__ import annotations

import re

import pytest
from live_page import (
    PHONE,
    SENTENCE,
    UNCHANGED,
    Visit,
    clip,
    complains,
    expect,
    film,
    hand_over,
    is_in_state,
    notes_states,
    png,
    says,
    show,
    soon,
    watch,
)
from stand_in import IMAGE_SIZE, StandIn


def test_camera_frame_is_sent_and_answered(visit: Visit, stand_in: StandIn) -> None:
    page = visit()
    expect(page.locator("#model")).to_have_text("fastvlm-tiny · 256 px · float32")
    film(page)
    page.get_by_role("button", name="Ask").click()
    says(page, SENTENCE)
    expect(page.locator("#ttft")).to_have_text(re.compile(r"^\d+ ms$|^\d\.\d\d s$"))
    expect(page.locator("#speed")).to_have_text("45.2")
    expect(page.locator("#parts")).to_contain_text("prefill 30 ms · first token at the server 50 ms")
    expect(page.locator("#parts")).to_contain_text("16 picture tokens · 3 tokens")
    (asked,) = stand_in.asked
    body = asked.body
    assert (body["model"], body["stream"], body["temperature"]) == ("fastvlm-tiny", True, 0)
    assert body["stream_options"] == {"include_usage": True}
    assert asked.question == page.locator("#prompt").input_value()
    red, green, blue = asked.picture.resize((1, 1)).getpixel((0, 0))
    assert green > 2 * max(red, blue)  # Chromium's fake camera is green


def test_whole_picture_is_sent_and_never_enlarged(visit: Visit, stand_in: StandIn) -> None:
    page = visit()
    for size, sent in (((600, 900), (171, IMAGE_SIZE)), ((100, 50), (100, 50)), ((512, 1), (IMAGE_SIZE, 1))):
        show(page, png("red", size))
        page.wait_for_selector("#answer", state="hidden")
        page.get_by_role("button", name="Read").click()
        says(page, SENTENCE)
        assert stand_in.asked[-1].picture.size == sent
        assert stand_in.asked[-1].question == "What is written here?"


def test_transparency_is_sent_over_white(visit: Visit, stand_in: StandIn) -> None:
    page = visit()
    show(page, png("#00000000", mode="RGBA"))
    page.click("#ask")
    says(page, SENTENCE)
    assert stand_in.asked[0].picture.getpixel((50, 50)) == (255, 255, 255)


@pytest.mark.parametrize("event", ["drop", "paste"])
def test_picture_can_be_dropped_and_pasted(visit: Visit, stand_in: StandIn, event: str) -> None:
    page = visit()
    hand_over(page, event, png())
    page.wait_for_selector("#still:not([hidden])")
    page.click("#ask")
    says(page, SENTENCE)
    assert stand_in.asked[0].picture.size == (200, 100)


def test_continuous_mode_asks_again_when_the_camera_moves_and_skips_frames_while_answering(
    visit: Visit, stand_in: StandIn
) -> None:
    stand_in.manners.pause_s = 0.15
    page = visit(PHONE)
    film(page)
    watch(page)
    soon(lambda: stand_in.finished >= 3)
    soon(lambda: page.evaluate("page.text.textContent") == SENTENCE)  # until the next one begins
    assert stand_in.most_at_once == 1
    assert stand_in.broken_off == 0
    page.keyboard.press("Escape")
    is_in_state(page, "Stopped")
    count = len(stand_in.asked)
    page.wait_for_timeout(500)
    assert len(stand_in.asked) == count
    expect(page.get_by_role("switch", name="Continuous")).not_to_be_checked()


def test_continuous_mode_does_not_repeat_the_same_frame_and_question(visit: Visit, stand_in: StandIn) -> None:
    page = visit()
    watch(page)
    is_in_state(page, "Waiting for a picture")
    hand_over(page, "drop", png("red"))
    is_in_state(page, UNCHANGED)
    page.wait_for_timeout(600)
    assert len(stand_in.asked) == 1
    hand_over(page, "drop", png("blue"))
    soon(lambda: stand_in.finished == 2)
    is_in_state(page, UNCHANGED)
    was_in_state = notes_states(page)
    page.locator("#prompt").press_sequentially(" And why?", delay=20)  # not one request for each key
    soon(lambda: was_in_state("Waiting for the question"))
    soon(lambda: stand_in.finished == 3)
    assert stand_in.asked[2].question == "Describe the picture in one sentence. And why?"
    is_in_state(page, UNCHANGED)
    page.wait_for_timeout(400)
    assert len(stand_in.asked) == 3


def test_video_loops_and_can_be_paused(visit: Visit, stand_in: StandIn) -> None:
    page = visit()
    moving = clip(page, "pen.fillStyle = i < 8 ? 'red' : 'blue'; pen.fillRect(0, 0, 160, 120);")
    show(page, moving, "clip.webm", "video/webm")
    watch(page)
    soon(lambda: stand_in.finished >= 4)
    blues = [asked.picture.getpixel((50, 50))[2] > 128 for asked in stand_in.asked]
    assert set(blues) == {True, False}
    assert stand_in.most_at_once == 1
    page.get_by_role("button", name="Pause").click()
    is_in_state(page, UNCHANGED)
    expect(page.get_by_role("button", name="Play")).to_be_visible()


def test_noise_is_not_a_change_but_a_small_object_is(visit: Visit, stand_in: StandIn) -> None:
    page = visit()
    noise = """
        const image = pen.createImageData(160, 120);
        for (let p = 0; p < image.data.length; p += 4) {
            image.data.fill(128 + 24 * (Math.random() - .5), p, p + 3);
            image.data[p + 3] = 255;
        }
        pen.putImageData(image, 0, 0);"""
    show(page, clip(page, noise), "noise.webm", "video/webm")
    watch(page)
    is_in_state(page, UNCHANGED)
    page.wait_for_timeout(1200)
    assert len(stand_in.asked) == 1
    show(page, clip(page, f"{noise} if (i > 8) {{ pen.fillStyle = '#fff'; pen.fillRect(125, 10, 20, 20); }}"),
         "thing.webm", "video/webm")  # fmt: skip
    soon(lambda: stand_in.finished >= 3)


def test_new_question_cancels_the_old_one(visit: Visit, stand_in: StandIn) -> None:
    stand_in.manners.words = ("Well, ", *["hm, "] * 100)
    page = visit()
    show(page, png())
    page.click("#ask")
    expect(page.locator("#text")).to_contain_text("Well, hm")
    stand_in.manners.words = ("Oh.",)
    page.fill("#prompt", "And now?")
    page.press("#prompt", "Enter")
    says(page, "Oh.")
    soon(lambda: stand_in.broken_off == 1)
    assert [asked.question for asked in stand_in.asked][1] == "And now?"


@pytest.mark.parametrize("way", ["Escape", "button", "leaving", "another picture"])
def test_answer_can_be_stopped(visit: Visit, stand_in: StandIn, way: str) -> None:
    stand_in.manners.words = ("Well, ", *["hm, "] * 200)
    page = visit()
    show(page, png())
    page.click("#ask")
    expect(page.locator("#text")).to_contain_text("Well, hm")
    if way == "Escape":
        page.keyboard.press("Escape")
    elif way == "button":
        page.get_by_role("button", name="Stop").click()
    elif way == "leaving":
        page.goto("about:blank")
    else:
        show(page, png("blue"))
        page.wait_for_selector("#answer", state="hidden")
    soon(lambda: stand_in.broken_off == 1)
    if way in ("Escape", "button"):
        is_in_state(page, "Stopped")
        expect(page.locator("#text")).to_contain_text("Well, hm")
        expect(page.get_by_role("button", name="Ask")).to_be_visible()


def test_another_camera_can_be_chosen_and_unplugging_is_noticed(
    visit: Visit,
) -> None:
    page = visit(PHONE)
    film(page)
    cameras = page.get_by_role("combobox", name="Which camera")
    expect(cameras.locator("option")).to_have_count(2)
    first = page.evaluate("source.stream.id")
    cameras.select_option(index=1)
    soon(lambda: page.evaluate("Boolean(visible())") and page.evaluate("source.stream.id") != first)
    expect(cameras.locator("option:checked")).to_have_text("fake_device_1")
    page.evaluate("source.stream.getVideoTracks()[0].dispatchEvent(new Event('ended'))")
    complains(page, "The camera was disconnected.")
    film(page)
    expect(cameras.locator("option:checked")).to_have_text("fake_device_1")  # remembered
    page.evaluate("localStorage['fastvlm-camera'] = 'no longer there'")
    page.reload()
    film(page)
    expect(cameras.locator("option:checked")).to_have_text("fake_device_0")


def test_phone_camera_can_be_switched(visit: Visit) -> None:
    page = visit(PHONE, """
        const settings = MediaStreamTrack.prototype.getSettings;
        const film = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
        window.wishes = [];
        navigator.mediaDevices.getUserMedia = (wish) => {
            wishes.push(wish.video.facingMode);
            return film(wish);
        };
        MediaStreamTrack.prototype.getSettings = function () {
            return {...settings.call(this), facingMode: wishes.at(-1).ideal};
        };""")  # fmt: skip
    film(page)
    page.get_by_role("button", name="Front camera").click()
    page.get_by_role("button", name="Back camera").click()
    page.get_by_role("button", name="Front camera").wait_for()
    assert [wish["ideal"] for wish in page.evaluate("wishes")] == ["environment", "user", "environment"]


def test_settings_are_remembered(visit: Visit) -> None:
    page = visit()
    page.fill("#prompt", "How many?")
    watch(page)
    page.reload()
    assert page.locator("#prompt").input_value() == "How many?"
    expect(page.get_by_role("switch", name="Continuous")).to_be_checked()
