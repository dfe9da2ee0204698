"""The live page with a keyboard and a screen reader, on desktop and phone, light and dark."""

from __future__ import annotations

import pytest
from live_page import (
    DESK,
    PHONE,
    SENTENCE,
    UNCHANGED,
    Visit,
    complains,
    expect,
    film,
    is_in_state,
    png,
    says,
    show,
)
from stand_in import StandIn

# The contrast of every visible text. Text over the picture is measured against white, the worst case.
CONTRASTS = """() => {
    const numbers = (colour) => {
        const [r, g, b, opacity = 1] = colour.match(/[\\d.]+/g).map(Number);
        return [r, g, b, opacity];
    };
    const light = (colour) => colour.slice(0, 3).map((v) => v / 255)
        .map((v) => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
    const over = (below, [r, g, b, opacity]) =>
        [r, g, b].map((v, i) => v * opacity + below[i] * (1 - opacity));
    const under = (element) => {
        const layers = [];
        for (let at = element; at && at.id !== 'stage'; at = at.parentElement) {
            const {backgroundImage, backgroundColor} = getComputedStyle(at);
            const scrim = backgroundImage.match(/rgba\\([^)]*\\)/g)?.at(-1);
            layers.push(numbers(scrim ?? backgroundColor));
        }
        return layers.reverse().reduce(over, [255, 255, 255]);
    };
    const found = {};
    for (const element of document.querySelectorAll('body *')) {
        const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
        if (!own && !['TEXTAREA', 'SELECT'].includes(element.tagName)) continue;
        if (!element.checkVisibility() || element.closest('script, .unseen, option')) continue;
        const [a, b] = [light(numbers(getComputedStyle(element).color)), light(under(element))];
        const name = `${element.tagName} ${element.id || element.textContent.trim()}`;
        found[name] = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    }
    return found;
}"""
FOCUS_IS_SEEN = """() => {
    const at = document.activeElement;
    const {outlineStyle, outlineWidth} = getComputedStyle(at.closest('.button') ?? at);
    return outlineStyle === 'solid' && parseFloat(outlineWidth) >= 2;
}"""
SIZES = """() => [...document.querySelectorAll('button, select, textarea, input')]
    .filter((control) => control.checkVisibility())
    .map((control) => [control, (control.closest('.button') ?? control).getBoundingClientRect()])
    .map(([control, box]) => [(control.labels[0] ?? control).textContent.trim(), box.width, box.height])"""
FIXED = ("#stage", "#form", "#prompt", "#ask", "#film")


def test_everything_works_by_keyboard(visit: Visit, stand_in: StandIn) -> None:
    page = visit()
    page.wait_for_timeout(100)
    order = []
    for _ in range(10):
        page.keyboard.press("Tab")
        order.append(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
        assert page.evaluate(FOCUS_IS_SEEN), f"focus on {order[-1]} is not seen"
    chips = ["Describe", "Read", "In my hand", "Count", "Expression"]
    assert order == ["film", "file", "continuous", *chips, "prompt", "ask"]
    page.focus("#file")
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Space")
    chooser.value.set_files({"name": "red.png", "mimeType": "image/png", "buffer": png()})
    page.wait_for_selector("#still:not([hidden])")
    page.focus("#prompt")
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.type("Which colour?")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("And why?")
    page.keyboard.press("Enter")
    says(page, SENTENCE)
    assert stand_in.asked[0].question == "Which colour?\nAnd why?"
    page.focus("#continuous")
    page.keyboard.press("Space")
    is_in_state(page, UNCHANGED)
    page.keyboard.press("Escape")
    is_in_state(page, "Stopped")
    page.focus("#film")
    page.keyboard.press("Enter")
    page.wait_for_selector("#moving:not([hidden])")
    page.keyboard.press("Enter")
    page.wait_for_selector("#empty:not([hidden])")
    page.focus("#ask")
    page.keyboard.press("Enter")
    complains(page, "There is no picture yet.")


def test_answer_is_announced_once_and_whole(visit: Visit, stand_in: StandIn) -> None:
    stand_in.manners.pause_s = 0.1
    page = visit()
    page.evaluate("""() => {
        window.announced = [];
        for (const live of document.querySelectorAll('[aria-live], [role=status], [role=alert]'))
            new MutationObserver(() => { if (live.textContent) announced.push(live.textContent); })
                .observe(live, {childList: true, characterData: true, subtree: true});
    }""")
    show(page, png())
    page.click("#ask")
    says(page, SENTENCE)
    is_in_state(page, "Ready")
    assert page.evaluate("announced") == [SENTENCE]


@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_everything_has_a_name_a_size_and_contrast_and_nothing_moves(
    visit: Visit, size: tuple[int, int]
) -> None:
    page = visit(size)
    page.emulate_media(reduced_motion="reduce")
    boxes = [page.locator(name).bounding_box() for name in FIXED]
    film(page)
    page.get_by_role("combobox", name="Which camera").wait_for()
    page.click("#ask")
    expect(page.locator("#parts")).to_contain_text("tokens")
    assert [page.locator(name).bounding_box() for name in FIXED] == boxes
    assert page.evaluate("document.documentElement.scrollWidth") == size[0]
    assert page.evaluate("document.documentElement.scrollHeight") == size[1]
    assert page.evaluate("document.documentElement.lang") == "en"
    assert page.title()
    for role in ("main", "heading"):
        assert page.get_by_role(role).count() == 1
    sizes = page.evaluate(SIZES)
    assert len(sizes) == 11
    assert all(name for name, *_ in sizes)
    assert [name for name, *sides in sizes if min(sides) < 44] == []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        contrasts = page.evaluate(CONTRASTS)
        assert len(contrasts) > 12
        assert {text: ratio for text, ratio in contrasts.items() if ratio < 4.5} == {}
    assert page.evaluate("document.getAnimations().length") == 0
