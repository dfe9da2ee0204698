"""A conversation: every answer is a fresh run's, token for token, and nothing is worked out twice."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest
from talks import FIRST, SECOND, THIRD, TOKENS, asked, fresh

from fastvlm_mlx import (
    VLM,
    Features,
    ImageError,
    ImageOptions,
    Picture,
    Prefilled,
    PromptError,
    Sampling,
    Session,
    Token,
)
from fastvlm_mlx.inference import decoding
from fastvlm_mlx.inputs.prompt import Text, positions
from fastvlm_mlx.models.kv_cache import KVCache

Vlm = Callable[[str], VLM]


@pytest.fixture(scope="module")
def vlm(vlm_of: Vlm) -> VLM:
    return vlm_of("apple-fused")


# --- the same answers ---


@pytest.mark.parametrize("name", ["apple-fused", "mlx-vlm-f32"])
def test_every_turn_s_answer_is_a_fresh_run_s(vlm_of: Vlm, pictures: list[Picture], name: str) -> None:
    session = Session(vlm_of(name))
    answers = [asked(session, FIRST, pictures[:1]), asked(session, SECOND), asked(session, THIRD)]
    assert len({answer.ids for answer in answers}) > 1
    assert [turn.ids for turn in session.turns] == [answer.ids for answer in answers]
    assert [turn.text for turn in session.turns] == [answer.text for answer in answers]


def test_two_pictures_together_in_marks_and_in_turn(vlm: VLM, pictures: list[Picture]) -> None:
    session = Session(vlm)
    asked(session, "First <image> then <image>: what changed?", pictures[:2])
    asked(session, SECOND)
    asked(session, "And this?", pictures[2:3])
    asked(session, THIRD)


def test_the_first_turn_is_the_question_alone(vlm: VLM, pictures: list[Picture]) -> None:
    session, alone = Session(vlm, "Be brief."), vlm.prompt(FIRST, pictures[:1], "Be brief.")
    assert positions(session.prompt(FIRST, pictures[:1])) == positions(alone)
    expected = vlm.generate(alone, max_tokens=TOKENS)
    assert session.generate(FIRST, pictures[:1], max_tokens=TOKENS).ids == expected.ids


def test_a_conversation_reads_as_chatml_does(vlm: VLM) -> None:
    session = Session(vlm)
    session.generate("One?", max_tokens=TOKENS)
    ids = [id for part in session.prompt("Two?") if isinstance(part, Text) for id in part.ids]
    said = session.turns[0]
    expected = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nOne?<|im_end|>\n"
        f"<|im_start|>assistant\n{said.text}<|im_end|>\n<|im_start|>user\nTwo?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert vlm.tokenizer.decode(ids, skip_special=False) == expected


def test_sampling_and_penalties_see_the_answer_alone(vlm: VLM, pictures: list[Picture]) -> None:
    session = Session(vlm)
    how = Sampling(1.0, top_k=20, repetition_penalty=1.3, seed=5)
    asked(session, FIRST, pictures[:1], sampling=how)
    asked(session, SECOND, sampling=how)


def test_chunked_reading_goes_on_in_the_middle(
    vlm: VLM, pictures: list[Picture], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "PREFILL_CHUNK", 7)
    session = Session(vlm)
    asked(session, FIRST, pictures[:1])
    asked(session, SECOND)


def test_an_answer_that_ends_by_a_stop_token_goes_on_as_one_that_was_cut(
    vlm: VLM, pictures: list[Picture]
) -> None:
    session = Session(vlm)
    whole = vlm.generate(session.prompt(FIRST, pictures[:1]), max_tokens=TOKENS).ids
    stop = next(id for place, id in enumerate(whole) if place > 2 and id not in whole[:place])
    stopping = Session(stopping_at(vlm, stop))
    answer = asked(stopping, FIRST, pictures[:1])
    assert answer.reason == "stop"
    assert answer.ids == tuple(itertools.takewhile(lambda id: id != stop, whole))
    asked(stopping, SECOND)


def stopping_at(vlm: VLM, stop: int) -> VLM:
    other = copy.copy(vlm)
    other.config = dataclasses.replace(vlm.config, eos_token_ids=(stop,))
    return other


# --- no work twice ---


def test_the_second_question_reads_its_own_words_alone(
    vlm: VLM, pictures: list[Picture], encoded: list[int]
) -> None:
    session = Session(vlm)
    first = session.generate(FIRST, pictures[:1], max_tokens=TOKENS)
    assert (first.image_tokens, first.cached_tokens) == (4, 0)
    second = session.generate(SECOND, max_tokens=TOKENS)
    new = vlm.tokenizer.encode(f"<|im_end|>\n<|im_start|>user\n{SECOND}<|im_end|>\n<|im_start|>assistant\n")
    assert second.image_tokens == 0
    assert second.text_tokens == len(new) + 1  # and the last token, which was said and not read
    assert second.cached_tokens == first.image_tokens + first.text_tokens + TOKENS - 1
    assert encoded == [1]


def test_a_picture_is_encoded_once_for_all_sessions_that_share_features(
    vlm: VLM, pictures: list[Picture], encoded: list[int]
) -> None:
    features = Features()
    again = Picture(mx.array(np.array(pictures[0].pixels)))
    for shown in (pictures[0], again):
        session = Session(vlm, features=features)
        asked_ids = session.generate(FIRST, [shown], max_tokens=TOKENS).ids
        session.clear()
        assert session.generate(FIRST, [shown], max_tokens=TOKENS).ids == asked_ids
    assert encoded == [1]
    assert (features.misses, features.hits, len(features)) == (1, 3, 1)


def test_one_content_shown_twice_in_a_question_is_encoded_once(
    vlm: VLM, pictures: list[Picture], encoded: list[int]
) -> None:
    again = Picture(mx.array(np.array(pictures[0].pixels)))
    session, shown = Session(vlm), [pictures[0], pictures[1], again]
    answer = session.generate(FIRST, shown, max_tokens=TOKENS)
    assert encoded == [2]
    assert answer.ids == vlm.generate(vlm.prompt(FIRST, shown), max_tokens=TOKENS).ids


def test_the_same_picture_read_at_another_size_is_another(vlm: VLM, encoded: list[int]) -> None:
    array = np.random.default_rng(0).integers(0, 256, (90, 60, 3), dtype=np.uint8)
    session = Session(vlm)
    for size, mode in ((64, "pad"), (128, "pad"), (128, "crop"), (128, "pad")):
        session.generate("Hm?", [array], options=ImageOptions(size, mode), max_tokens=1)
    assert encoded == [1, 1, 1]


def test_features_stay_within_their_budget_and_the_longest_unused_goes_first(
    vlm: VLM, pictures: list[Picture], encoded: list[int]
) -> None:
    one = 4 * vlm.config.text.hidden_size * 4
    features = Features(2 * one)
    session = Session(vlm, features=features)
    for picture in (0, 1, 0, 2):  # 1 is the longest unused when 2 comes
        session.clear()
        session.generate("Hm?", [pictures[picture]], max_tokens=1)
        assert features.nbytes <= 2 * one
    held = features.subset(pictures)
    assert held.keys() == {pictures[0].key, pictures[2].key}
    session.clear()
    together = session.generate("Hm?", pictures[:3], max_tokens=TOKENS).ids  # more than it holds
    assert features.nbytes <= 2 * one
    assert together == vlm.generate(vlm.prompt("Hm?", pictures[:3]), max_tokens=TOKENS).ids


def test_without_any_budget_nothing_but_speed_is_lost(vlm: VLM, pictures: list[Picture]) -> None:
    session = Session(vlm, features=Features(0))
    asked(session, FIRST, pictures[:1])
    asked(session, SECOND)
    assert session.features.nbytes == 0


# --- another system prompt, a full context ---


def test_another_system_prompt_is_read_with_all_that_follows(
    vlm: VLM, pictures: list[Picture], encoded: list[int]
) -> None:
    session = Session(vlm)
    session.generate(FIRST, pictures[:1], max_tokens=TOKENS)
    for system in ("Answer in Latin.", "", None):
        session.system = system
        expected = fresh(session, SECOND)
        encoded.clear()
        answer = session.generate(SECOND, max_tokens=TOKENS)
        assert answer.ids == expected
        assert encoded == []
    with pytest.raises(PromptError, match="system prompt holds <image>"):
        session.system = "Look: <image>"
    assert session.system is None


def test_a_full_context_drops_the_oldest_turns_and_keeps_the_picture(
    vlm: VLM, pictures: list[Picture], encoded: list[int]
) -> None:
    session = Session(vlm, context=420)
    asked(session, "Zero?")
    asked(session, FIRST, pictures[:1])
    shown, dropped = session.turns[1], 0
    for number in range(12):
        before = session.turns
        answer = asked(session, f"Question number {number}?")
        assert answer.cached_tokens + answer.image_tokens + answer.text_tokens + TOKENS <= 420
        assert session.turns[0] is shown or session.turns[1] is shown
        gone = [turn for turn in before if turn not in session.turns]
        assert gone == [turn for turn in before if turn is not shown][: len(gone)]  # the oldest
        dropped += bool(gone)
        if not gone:
            assert answer.cached_tokens > positions(shown.parts)
    assert 0 < dropped < 12  # some room is made at a time
    session.generate("A new one?", pictures[1:2], max_tokens=TOKENS)
    for number in range(8):
        asked(session, f"Once more, {number}?")
    assert [turn.pictures for turn in session.turns if turn.pictures] == [tuple(pictures[1:2])]


def test_a_question_that_cannot_fit_is_refused_and_changes_nothing(vlm: VLM, pictures: list[Picture]) -> None:
    session = Session(vlm, context=200)
    session.generate(FIRST, pictures[:1], max_tokens=TOKENS)
    before = session.turns
    with pytest.raises(PromptError, match="positions and the model reads 200"):
        session.generate("word " * 100, max_tokens=TOKENS)
    assert session.turns == before
    asked(session, SECOND)


def test_the_context_is_never_longer_than_the_model_s(vlm: VLM) -> None:
    assert Session(vlm, context=10**9).context == vlm.config.text.context


# --- stopping, errors ---


@pytest.mark.parametrize("tokens", [0, 1, 5])
def test_an_answer_that_is_stopped_stays_as_far_as_it_came(
    vlm: VLM, pictures: list[Picture], tokens: int
) -> None:
    session = Session(vlm)
    whole = fresh(session, FIRST, pictures[:1])
    events = session.stream(FIRST, pictures[:1], max_tokens=TOKENS)
    assert isinstance(next(events), Prefilled)
    said = [event.id for event in itertools.islice(events, tokens) if isinstance(event, Token)]
    events.close()  # type: ignore[attr-defined]
    assert tuple(said) == whole[:tokens]
    assert [turn.ids for turn in session.turns] == ([tuple(said)] if tokens else [])
    second = asked(session, SECOND)
    assert second.cached_tokens >= 20 + tokens - 1


@pytest.mark.parametrize("call", [1, 2, 4, 7, 9])
def test_an_interrupt_anywhere_in_the_decoder_leaves_a_session_that_goes_on(
    vlm: VLM, pictures: list[Picture], monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """Layers of one step then hold different lengths."""
    session = Session(vlm)
    asked(session, FIRST, pictures[:1])
    extend, calls = KVCache.extend, itertools.count(1)

    def interrupted(self: KVCache, both: mx.array) -> tuple[mx.array, mx.array]:
        if next(calls) == call:
            raise KeyboardInterrupt
        return extend(self, both)  # type: ignore[return-value]

    with monkeypatch.context() as patch:
        patch.setattr(KVCache, "extend", interrupted)
        with pytest.raises(KeyboardInterrupt):
            session.generate(SECOND, max_tokens=TOKENS)
    asked(session, THIRD)


def test_a_session_answers_one_question_at_a_time(vlm: VLM) -> None:
    session = Session(vlm)
    events = session.stream("One?", max_tokens=TOKENS)
    next(events)
    with pytest.raises(PromptError, match="still answering"):
        session.generate("Two?")
    list(events)
    asked(session, "Two?")


def test_what_is_wrong_with_a_question_changes_nothing(vlm: VLM, pictures: list[Picture]) -> None:
    session = Session(vlm)
    for text, images, error in (
        (" ", [], PromptError),
        ("<image> and <image>", pictures[:1], PromptError),
        ("Hm?", ["/nowhere.png"], ImageError),
    ):
        with pytest.raises(error):
            session.generate(text, images)
    assert session.turns == ()
    asked(session, FIRST, pictures[:1])


# --- forks ---


def test_forks_go_on_apart(vlm: VLM, pictures: list[Picture], encoded: list[int]) -> None:
    session = Session(vlm)
    session.generate(FIRST, pictures[:1], max_tokens=TOKENS)
    other = session.fork()
    assert encoded == [1]
    for one, text in ((session, SECOND), (other, THIRD), (session, THIRD), (other, SECOND)):
        expected = fresh(one, text)
        answer = one.generate(text, max_tokens=TOKENS)
        assert answer.ids == expected
        assert answer.image_tokens == 0
    assert [turn.question for turn in session.turns] == [FIRST, SECOND, THIRD]
    assert [turn.question for turn in other.turns] == [FIRST, THIRD, SECOND]


def test_a_fork_of_a_session_in_the_middle_of_an_answer_is_as_before_it(vlm: VLM) -> None:
    session = Session(vlm)
    session.generate("One?", max_tokens=TOKENS)
    events = session.stream("Two?", max_tokens=TOKENS)
    next(events), next(events)
    other = session.fork()
    assert [turn.question for turn in other.turns] == ["One?"]
    asked(other, "Three?")
    list(events)
    asked(session, "Three?")
