"""A user's conversations: every form gives the same samples, and the loss is on the model's words alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import tuning

import fastvlm_mlx
from fastvlm_mlx.errors import DataError
from fastvlm_mlx.inputs.dataset import digest
from fastvlm_mlx.inputs.prompt import chatml_turns, conversation, render
from fastvlm_mlx.train import losses
from fastvlm_mlx.train.batches import Batch, Share
from fastvlm_mlx.train.data import Conversations
from fastvlm_mlx.train.recipe import Stage

MODEL = "apple-fused, converted"


@pytest.fixture
def vlm(vlm_of: Callable[[str], fastvlm_mlx.VLM]) -> fastvlm_mlx.VLM:
    return vlm_of(MODEL)


@pytest.fixture
def source_of(
    tmp_path: Path, vlm: fastvlm_mlx.VLM, directory_of: Callable[[str], Path]
) -> Callable[..., Conversations]:
    def source(*rows: Any, context: int = 4096, seed: int = 0) -> Conversations:
        path = tuning.rows(tmp_path, *rows)
        return Conversations(seed, path, None, digest(path), directory_of(MODEL), vlm.config.image, context)

    return source


def stage(batch: int, size: int = 128) -> Stage:
    return Stage("learn", 1, 1e-3, batch=batch, image_size=size)


def whole(source: Conversations, size: int = 128) -> Batch:
    return source.batch(stage(len(source.data.rows), size), 0, 0, Share())


def assert_same(one: Batch, other: Batch) -> None:
    assert np.array_equal(one.pixels, other.pixels)
    assert repr(one.texts) == repr(other.texts)


FORMS: dict[str, dict[str, Any]] = {
    "LLaVA": {
        "image": "red.png",
        "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "red"}],
    },
    "messages": {
        "images": ["red.png"],
        "messages": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "red"}],
    },
    "messages in parts": {
        "images": ["red.png"],
        "messages": [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "red"}]},
        ],
    },
    "several answers": {"image": "red", "question": "What?", "answers": ["cat", "red", "red"]},
}


@pytest.mark.parametrize("row", FORMS.values(), ids=FORMS)
def test_every_form_gives_the_same_samples(source_of: Callable[..., Conversations], row: Any) -> None:
    plain = whole(source_of({"image": "red.png", "question": "What?", "answer": "red"}))
    assert_same(whole(source_of(row)), plain)


def test_a_llava_row_without_a_picture_has_none(source_of: Callable[..., Conversations]) -> None:
    turns = [{"from": "human", "value": "Two and two?"}, {"from": "gpt", "value": "four"}]
    assert_same(whole(source_of({"conversations": turns})), whole(source_of(tuning.ROWS[3])))


def test_a_dialogue_is_what_generation_renders() -> None:
    said = ["<image> What?", "A cat.", "And <image>?", "A dog.", "Sure?", "yes"]
    pieces = chatml_turns(said, 2, "Be brief.")
    assert "".join(pieces[:-1]) == render(conversation(said[:-1]), 2, "Be brief.")
    assert pieces[1::2] == ["A cat.<|im_end|>", "A dog.<|im_end|>", "yes<|im_end|>"]


def test_only_the_assistant_s_words_and_their_end_are_learned(
    source_of: Callable[..., Conversations], vlm: fastvlm_mlx.VLM
) -> None:
    batch = whole(source_of())
    said: list[str] = []
    for texts in batch.texts:
        own = {owner: "" for owner in texts.owners.tolist()}
        for owner, target in zip(texts.owners.tolist(), texts.targets.tolist(), strict=True):
            own[owner] += vlm.tokenizer.decode([target], skip_special=False)
        said += own.values()
    assert sorted(said) == [
        "A blue picture.<|im_end|>yes<|im_end|>",
        "four<|im_end|>",
        "red<|im_end|>",
        "the colour<|im_end|>",
    ]


def test_an_epoch_shows_every_row_once_and_each_in_another_order(
    source_of: Callable[..., Conversations],
) -> None:
    given = [{"images": [], "question": f"{n}?", "answer": str(n)} for n in range(10, 40)]
    source, again, other = source_of(*given, seed=1), source_of(*given, seed=1), source_of(*given, seed=2)

    def asked(source: Conversations, steps: range) -> list[tuple[int, ...]]:
        batches = [source.batch(stage(10), 0, step, Share()) for step in steps]
        return [
            tuple(row[row > 0].tolist())
            for batch in batches
            for texts in batch.texts
            for row in texts.tails.ids
        ]

    first = asked(source, range(3))
    assert len(set(first)) == 30
    assert set(asked(source, range(3, 6))) == set(first)
    assert asked(source, range(3, 6)) != first == asked(again, range(3)) != asked(other, range(3))


def test_data_that_change_under_a_run_are_refused(source_of: Callable[..., Conversations]) -> None:
    source = source_of()
    source.path.write_text(source.path.read_text() + "\n")
    with pytest.raises(DataError, match=r"train\.jsonl: has changed"):
        whole(source)


def targets(batch: Batch) -> int:
    return sum(len(texts.targets) for texts in batch.texts)


def test_ranks_divide_a_batch(source_of: Callable[..., Conversations]) -> None:
    source = source_of()
    parts = [source.batch(stage(4), 0, 0, Share(rank, 2)) for rank in range(2)]
    assert sum(len(texts.head_of) for part in parts for texts in part.texts) == 4
    everything = whole(source)
    assert sum(map(targets, parts)) == targets(everything)
    assert sum(len(part.pixels) for part in parts) == len(everything.pixels) == 4


def loss_of(vlm: fastvlm_mlx.VLM, batch: Batch) -> float:
    pixels = mx.array(batch.pixels).astype(mx.float32) / 255
    rows = vlm.model.projector(vlm.vision(pixels).flatten(0, 2)) if pixels.size else None
    return losses.answers(vlm.model, rows, batch.texts)[0].item()


def plain_loss(
    vlm: fastvlm_mlx.VLM, said: list[str], pictures: list[Path], system: str | None
) -> list[float]:
    """By definition: -log p of each id that the assistant says, one conversation at a time."""
    found: list[float] = []
    for turn in range(1, len(said), 2):
        options = fastvlm_mlx.ImageOptions(128)
        *asked, last = vlm.prompt(conversation(said[:turn]), pictures, system, options=options)
        answer = vlm.tokenizer.encode(f"{said[turn]}<|im_end|>")
        logits = vlm.logits((*asked, fastvlm_mlx.Text((*last.ids, *answer))))
        at = logits.shape[0] - len(answer) - 1
        for place, id in enumerate(answer, at):
            found.append((mx.logsumexp(logits[place]) - logits[place, id]).item())
    return found


def test_the_loss_is_that_of_every_answer_s_ids_by_the_model_that_generates(
    source_of: Callable[..., Conversations], vlm: fastvlm_mlx.VLM, tmp_path: Path
) -> None:
    cases = [
        (["Which colour?", "red"], ["red.png"], None),
        (["<image>\nWhat is it?", "A blue picture.", "Sure?", "yes"], ["blue.png"], None),
        (["First <image>, then <image>: what changed?", "the colour"], ["green.png", "red.png"], "Be brief."),
        (["Two and two?", "four"], [], None),
    ]
    total = weight = 0.0
    for row, (said, names, system) in zip(tuning.ROWS, cases, strict=True):
        alone = loss_of(vlm, whole(source_of(row)))
        plain = plain_loss(vlm, said, [tmp_path / name for name in names], system)
        assert alone == pytest.approx(np.mean(plain), rel=1e-5)
        total += alone * len(plain) ** 0.5
        weight += len(plain) ** 0.5
    # padded to the longest, together: a long answer weighs as the root of its length
    assert loss_of(vlm, whole(source_of())) == pytest.approx(total / weight, rel=1e-5)
