"""Conversations in files: saved, gone on with, refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from talks import FIRST, SECOND, THIRD, TOKENS, asked

from fastvlm_mlx import VLM, DataError, ImageOptions, Picture, Session
from fastvlm_mlx.weights import tensorfile

Vlm = Callable[[str], VLM]


@pytest.fixture(scope="module")
def vlm(vlm_of: Vlm) -> VLM:
    return vlm_of("apple-fused")


@pytest.mark.parametrize("kind", ["bytes", "floats"])
def test_a_restored_session_goes_on_as_if_it_had_never_ended(
    vlm: VLM, pictures: list[Picture], encoded: list[int], tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "talk.session"
    array = np.random.default_rng(3).integers(0, 256, (90, 60, 3), dtype=np.uint8)
    shown = [vlm.picture(array, ImageOptions(128)), pictures[1]] if kind == "bytes" else pictures[:2]
    session = Session(vlm, "Be brief – or nicht.")
    session.generate(FIRST, shown, max_tokens=TOKENS)
    session.generate(SECOND, max_tokens=TOKENS)
    session.save(path)
    expected = session.generate(THIRD, max_tokens=TOKENS)
    encoded.clear()
    restored = Session.restore(vlm, path)
    assert restored.system == session.system
    answer = restored.generate(THIRD, max_tokens=TOKENS)
    assert (answer.ids, answer.cached_tokens) == (expected.ids, expected.cached_tokens)
    assert encoded == []
    assert [(t.question, t.text, t.ids) for t in restored.turns] == [
        (t.question, t.text, t.ids) for t in session.turns
    ]
    restored.system = ""  # the pictures are read again, not seen again
    restored.generate(THIRD, max_tokens=1)
    assert encoded == []
    asked(restored, SECOND)
    restored.save(path)  # an earlier one may be replaced
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_bytes_are_saved_as_bytes(vlm: VLM, tmp_path: Path) -> None:
    array = np.random.default_rng(3).integers(0, 256, (90, 60, 3), dtype=np.uint8)
    session = Session(vlm)
    session.generate(FIRST, [array, array], options=ImageOptions(128), max_tokens=2)
    session.save(tmp_path / "talk")
    header = tensorfile.read_header(tmp_path / "talk")
    assert header["picture.0"].shape == (128, 128, 3)
    assert "picture.1" not in header  # the same once more
    restored = Session.restore(vlm, tmp_path / "talk")
    assert restored.turns[0].pictures[0].key == session.turns[0].pictures[0].key


def test_another_model_reads_the_conversation_again(
    vlm: VLM, vlm_of: Vlm, pictures: list[Picture], encoded: list[int], tmp_path: Path
) -> None:
    session = Session(vlm)
    session.generate(FIRST, pictures[:1], max_tokens=TOKENS)
    session.save(tmp_path / "talk")
    encoded.clear()
    other = Session.restore(vlm_of("tied"), tmp_path / "talk")
    assert other.turns[0].text.count("�") >= session.turns[0].text.count("�")
    answer = other.generate(SECOND, max_tokens=TOKENS)
    assert (answer.cached_tokens, encoded) == (0, [1])


def test_a_new_session_is_saved_too(vlm: VLM, tmp_path: Path) -> None:
    Session(vlm).save(tmp_path / "new")
    asked(Session.restore(vlm, tmp_path / "new"), "Hello?")


def test_saving_replaces_no_other_file(vlm: VLM, tmp_path: Path) -> None:
    (tmp_path / "cat.jpg").write_text("precious")
    with pytest.raises(DataError, match="no saved conversation"):
        Session(vlm).save(tmp_path / "cat.jpg")
    with pytest.raises(DataError, match="no folder"):
        Session(vlm).save(tmp_path / "gone" / "talk")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("cat.jpg", "precious")]


def rewritten(path: Path, **changes: Any) -> None:
    """The file with tensors replaced, or left out where they are None, and its words changed."""
    arrays, about = dict(tensorfile.lazy_arrays(path)), tensorfile.read_metadata(path)
    mx.eval(arrays)
    for old, new in changes.pop("words", {}).items():
        assert old in about["conversation"]
        about["conversation"] = about["conversation"].replace(old, new)
    arrays = {k: changes.get(k.replace(".", "_"), a) for k, a in arrays.items()}
    arrays = {k: a for k, a in arrays.items() if a is not None}
    tensorfile.write(path, arrays, list(arrays), about, lambda count: None)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seen_0": None}, "seen.0"),
        ({"seen_1": mx.zeros((2, 1, 2, 3, 4))}, "seen.1"),
        ({"features_0": mx.zeros((1, 1))}, "features.0"),
        ({"picture_0": None}, "shows pictures"),
        ({"picture_0": mx.zeros((1, 100, 128, 3))}, "picture 0"),
        ({"words": {'"version": 2': '"version": 9'}}, "version 9.*upgrade"),
        ({"words": {'"version": 2': '"version": 1'}}, "version 1.*begin anew"),
        ({"words": {'"turns"': '"turn"'}}, "turn"),
        ({"words": {'"ids": [': '"ids": [99999, '}}, "vocabulary"),
        ({"words": {"{": ""}}, "save the conversation again"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_file_that_was_meddled_with_is_refused(
    vlm: VLM, pictures: list[Picture], tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    path = tmp_path / "talk"
    session = Session(vlm)
    session.generate(FIRST, pictures[:1], max_tokens=2)
    session.save(path)
    rewritten(path, **changes)
    with pytest.raises(DataError, match=says) as error:
        Session.restore(vlm, path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("content", [None, b"", b"{}", b"x" * 5000])
def test_what_is_no_saved_conversation_is_named(vlm: VLM, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "talk"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match="is no saved conversation"):
        Session.restore(vlm, path)
