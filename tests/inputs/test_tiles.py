"""Pictures in pieces and of other shapes, as the model reads them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from pictures import TALL, WIDE, noise

from fastvlm_mlx import VLM, ImageOptions, Picture, Session, Text
from fastvlm_mlx.errors import ConfigError, ImageError, PromptError
from fastvlm_mlx.inputs.image import preprocess_all
from fastvlm_mlx.inputs.prompt import insert_marks

ErrorOf = Callable[[Any, Any], float]
CLOSE = 1e-5
SIZE = 128
TILES = ImageOptions(SIZE, "tiles", (2, 2))
PADDED = ImageOptions(SIZE, "pad")


@pytest.fixture
def vlm(vlm_of: Callable[[str], VLM]) -> VLM:
    return vlm_of("apple-fused")


def shown(prompt: tuple[Any, ...]) -> list[Picture]:
    return [part for part in prompt if isinstance(part, Picture)]


# --- the tower ---


def test_tile_tokens_equal_the_tower_run_on_each_crop(vlm: VLM, relative_error: ErrorOf) -> None:
    prompt = vlm.prompt("What?", [WIDE], options=TILES)
    start = len(prompt[0].ids)
    rows = vlm.model.embed(prompt)[0, start : start + 5 * 4]
    alone = [vlm.encode_image(piece)[0] for piece in preprocess_all(WIDE, TILES)]
    assert relative_error(rows, mx.concatenate(alone)) <= CLOSE


def test_two_pictures_and_tiles_in_one_prompt_equal_the_concatenated_features(
    vlm: VLM, relative_error: ErrorOf
) -> None:
    tiled = vlm.pictures(WIDE, TILES)
    prompt = vlm.prompt("From <image> over <image> to <image>.", [TALL, tiled, TALL], options=PADDED)
    kinds = [type(part) for part in prompt]
    assert kinds == [Text, Picture, Text, *[Picture] * 5, Text, Picture, Text]
    expected = [
        vlm.model.language.embedding(mx.array(part.ids))
        if isinstance(part, Text)
        else vlm.encode_image(part.pixels)[0]
        for part in prompt
    ]
    assert relative_error(vlm.model.embed(prompt)[0], mx.concatenate(expected)) <= CLOSE
    crops = [*preprocess_all(TALL, PADDED), *preprocess_all(WIDE, TILES), *preprocess_all(TALL, PADDED)]
    for picture, crop in zip(shown(prompt), crops, strict=True):
        np.testing.assert_array_equal(np.array(picture.pixels[0]), crop)


@pytest.mark.parametrize("count", [4, 9])
def test_tiles_go_through_the_tower_as_one_batch(vlm: VLM, encoded: list[int], count: int) -> None:
    side = round(count**0.5)
    picture = noise(300, 300)
    prompt = vlm.prompt("What?", [picture], options=ImageOptions(64, "tiles", (side, side)))
    vlm.generate(prompt, max_tokens=1)
    assert encoded == [1 + count]


def test_a_question_about_tiles_is_answered_as_one_about_as_many_pictures(vlm: VLM) -> None:
    crops = preprocess_all(WIDE, TILES)
    marks = "<image>" * len(crops)
    expected = vlm.generate(vlm.prompt(f"{marks}\nWhat?", crops), max_tokens=8)
    found = vlm.generate(vlm.prompt("What?", [WIDE], options=TILES), max_tokens=8)
    assert found.ids == expected.ids
    assert found.image_tokens == 5 * 4
    [batched, _] = vlm.answers([vlm.prompt("What?", [WIDE], options=TILES), "And?"], max_tokens=8)
    assert batched.ids == expected.ids


def test_a_conversation_about_tiles_is_answered_as_a_fresh_run(vlm: VLM) -> None:
    session = Session(vlm)
    first = session.generate("What?", [WIDE], max_tokens=8, options=TILES)
    assert first.ids == vlm.generate(vlm.prompt("What?", [WIDE], options=TILES), max_tokens=8).ids
    asked = session.prompt("And of this?", [vlm.pictures(TALL, TILES)])
    second = session.generate("And of this?", [TALL], max_tokens=8, options=TILES)
    assert second.ids == vlm.generate(asked, max_tokens=8).ids
    assert (second.image_tokens, len(session.features)) == (5 * 4, 10)


def test_a_native_picture_is_one_of_another_shape(vlm: VLM, relative_error: ErrorOf) -> None:
    prompt = vlm.prompt("What?", [WIDE], options=ImageOptions(256, "native"))
    [picture] = shown(prompt)
    assert picture.pixels.shape == (1, 192, 256, 3)
    assert picture.positions == 12
    answer = vlm.generate(prompt, max_tokens=4)
    assert answer.image_tokens == 12
    [crop] = preprocess_all(WIDE, ImageOptions(256, "native"))
    np.testing.assert_array_equal(np.array(picture.pixels[0]), crop)


# --- what is given and taken ---


def test_what_pictures_gives_several_prompts_can_share(vlm: VLM) -> None:
    tiled = vlm.pictures(WIDE, TILES)
    first, second = (vlm.prompt(text, [tiled]) for text in ("What?", "Where?"))
    assert shown(first) == shown(second) == list(tiled)
    assert vlm.pictures(tiled[0]) == tiled[:1]


def test_pixels_are_taken_as_they_are(vlm: VLM) -> None:
    [picture] = vlm.pictures(mx.zeros((64, 192, 3)), TILES)
    assert picture.pixels.shape == (1, 64, 192, 3)


def test_one_picture_is_what_it_says(vlm: VLM) -> None:
    with pytest.raises(ConfigError, match=r"5 pieces are no single picture; `VLM\.pictures` gives"):
        vlm.picture(noise(300, 300), ImageOptions(128, "tiles"))
    assert vlm.picture(noise(100, 100), ImageOptions(128, "tiles")).positions == 4  # one tile shows it whole


@pytest.mark.parametrize("wrong", [(), (TALL, WIDE)])
def test_a_tuple_is_pictures(vlm: VLM, wrong: Any) -> None:
    with pytest.raises(ImageError, match="a picture in pieces"):
        vlm.prompt("What?", [wrong])


def test_more_tiles_than_the_model_reads_are_counted(vlm: VLM) -> None:
    beyond = r"400 tiles and their overview take 25664 positions.*smaller --grid.*--max-tiles.*--image-size"
    with pytest.raises(PromptError, match=beyond):
        vlm.prompt("What?", [noise(30, 30)], options=ImageOptions(512, "tiles", (20, 20)))


def test_a_bad_text_is_refused_before_pictures_are_read(vlm: VLM) -> None:
    for text in ("", "<image> and <image>?"):
        with pytest.raises(PromptError, match=r"empty|marks 2 place"):
            vlm.prompt(text, ["there is no such file"], options=TILES)


# --- marks ---


@pytest.mark.parametrize(
    ("text", "counts", "found"),
    [
        ("What?", [], "What?"),
        ("What?", [1, 1], "What?"),  # `render` puts them first
        ("What?", [2], "<image><image>\nWhat?"),
        ("What?", [1, 3], "<image>\n<image><image><image>\nWhat?"),
        ("<image> or <image>?", [3, 1], "<image><image><image> or <image>?"),
        (" ", [2], " "),  # is still empty
    ],
)
def test_every_piece_has_a_mark(text: str, counts: list[int], found: str) -> None:
    assert insert_marks(text, ["<image>" * count for count in counts]) == found


def test_marks_for_other_pictures_are_refused() -> None:
    with pytest.raises(PromptError, match=r"marks 1 place.* and 2 picture"):
        insert_marks("<image>?", ["<image>" * 5, "<image>"])


# --- conversations ---


def test_a_conversation_about_tiles_says_what_a_fresh_run_says(vlm: VLM, tmp_path: Path) -> None:
    session, tiled = Session(vlm), vlm.pictures(WIDE, TILES)
    session.generate("What?", [tiled], max_tokens=6)
    prompt = session.prompt("And?")
    assert [picture.key for picture in shown(prompt)] == [picture.key for picture in tiled]
    fresh = vlm.generate(prompt, max_tokens=6)
    session.save(tmp_path / "talk")
    for one in (session, Session.restore(vlm, tmp_path / "talk")):
        found = one.generate("And?", max_tokens=6)
        assert found.ids == fresh.ids
        assert found.cached_tokens >= 5 * 4
