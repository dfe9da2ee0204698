"""Responses validate against OpenAI's client types. Stop strings cut the text wherever it is split."""

from __future__ import annotations

import json
import math
import random

import pytest

from fastvlm_mlx.serve.reply import DONE, Head, Stops, Timings, TokenLogprob, Usage, models, sse

openai = pytest.importorskip("openai")
httpx = pytest.importorskip("httpx")

USAGE, TIMINGS = Usage(30, 12, 20), Timings(0.5, 0.3, 0.2, 40.0, 16)
LOGPROBS = (
    TokenLogprob(
        " ca",
        b" ca",
        -0.25,
        (TokenLogprob(" ca", b" ca", -0.25), TokenLogprob("\ufffd", b"\xf0\x9f", -math.inf)),
    ),
    TokenLogprob("t", b"t", -0.0),
)
HEAD = Head("chatcmpl-1", "tiny", 1_700_000_000, include_usage=True)


def sent(found: object) -> object:
    """Encode and decode JSON, as a client receives it."""
    return json.loads(json.dumps(found, allow_nan=False))


def test_completion_validates_as_openais() -> None:
    found = HEAD.completion("cat", "stop", USAGE, TIMINGS, LOGPROBS)
    answer = openai.types.chat.ChatCompletion.model_validate(sent(found), strict=True)
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", "cat", "stop")
    assert answer.usage.total_tokens == 42
    assert answer.usage.prompt_tokens_details.cached_tokens == 20
    first, last = choice.logprobs.content
    assert bytes(first.bytes) == b" ca"
    assert [(other.token, other.logprob) for other in first.top_logprobs] == [
        (" ca", -0.25),
        ("\ufffd", -9999),
    ]
    assert last.top_logprobs == []
    assert found["timings"] == {
        "ttft_s": 0.5,
        "vision_s": 0.3,
        "prefill_s": 0.2,
        "tokens_per_s": 40.0,
        "image_tokens": 16,
    }


def test_logprobs_are_null_by_default() -> None:
    found = HEAD.completion("cat", "length", USAGE, TIMINGS)
    answer = openai.types.chat.ChatCompletion.model_validate(sent(found), strict=True)
    assert answer.choices[0].logprobs is None
    assert answer.choices[0].finish_reason == "length"


def test_chunks_validate_as_openais() -> None:
    events = [HEAD.opening(), HEAD.piece("ca", LOGPROBS[:1]), HEAD.piece("t\n\ud7ff"), HEAD.closing("stop")]
    chunks = [
        openai.types.chat.ChatCompletionChunk.model_validate(sent(event), strict=True)
        for event in [*events, HEAD.usage(USAGE, TIMINGS)]
    ]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == "cat\n\ud7ff"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None, None, None, "stop"]
    assert chunks[1].choices[0].logprobs.content[0].token == " ca"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 12
    assert all(event["usage"] is None for event in events)
    assert "usage" not in Head("a", "b", 1).piece("c")


def test_openais_client_parses_the_stream() -> None:
    words = ["Ein ", "Kätz", "chen", "\n\nund \u2028 🐕", ""]
    events = [HEAD.opening(), *map(HEAD.piece, words), HEAD.closing("stop"), HEAD.usage(USAGE, TIMINGS)]
    body = b"".join(map(sse, events)) + DONE

    def answer(_: object) -> object:
        return httpx.Response(200, headers={"content-type": "text/event-stream"}, content=body)

    with (
        httpx.Client(transport=httpx.MockTransport(answer)) as transport,
        openai.OpenAI(api_key="none", base_url="http://here/v1", http_client=transport) as client,
    ):
        ask = [{"role": "user", "content": "Hi"}]
        chunks = list(client.chat.completions.create(model="tiny", messages=ask, stream=True))
    assert len(chunks) == len(events)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "".join(words)
    assert chunks[-1].usage.total_tokens == 42
    assert chunks[-1].timings["image_tokens"] == 16


def test_models_validate_as_openais() -> None:
    found = models(["tiny", "fastvlm"], 1_700_000_000, 256, "float32")
    assert found["object"] == "list"
    for name, entry in zip(["tiny", "fastvlm"], found["data"], strict=True):
        model = openai.types.Model.model_validate(sent(entry), strict=True)
        assert (model.id, model.image_size, model.dtype) == (name, 256, "float32")


# --- stop strings


def shown(stops: tuple[str, ...], pieces: list[str]) -> tuple[str, bool]:
    cutter = Stops(stops)
    text = "".join(map(cutter.add, pieces)) + cutter.finish()
    return text, cutter.met


def cut(stops: tuple[str, ...], text: str) -> tuple[str, bool]:
    """The definition: the shortest prefix that ends with a stop string, without that string."""
    for end in range(len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)], True
    return text, False


@pytest.mark.parametrize(
    ("stops", "pieces", "expected"),
    [
        (("END",), ["Done. E", "N", "D more"], "Done. "),
        (("END",), ["Done. E", "N", "d"], "Done. ENd"),
        (("\n\n",), ["a\n", "b\n", "\n"], "a\nb"),
        (("aab",), ["aaa", "ab"], "aa"),
        (("bc", "abc"), ["xab", "c"], "x"),
        (("abcd", "bc"), ["xabcd"], "xa"),
        (("🐕‍🦺",), ["ein 🐕", "‍", "🦺!"], "ein "),
        (("🐕‍🦺",), ["ein 🐕", "‍", "!"], "ein 🐕‍!"),
        (("x",), ["x"], ""),
        ((), ["as it", " is"], "as it is"),
    ],
)
def test_text_ends_before_the_stop_string(stops: tuple[str, ...], pieces: list[str], expected: str) -> None:
    assert shown(stops, pieces) == cut(stops, "".join(pieces))
    assert shown(stops, pieces)[0] == expected


def test_stops_are_independent_of_pieces_and_never_send_too_much() -> None:
    random_ = random.Random(0)
    for _ in range(4000):
        letters = "ab🐕"[: random_.randint(1, 3)]
        word = lambda most: "".join(random_.choices(letters, k=random_.randint(1, most)))  # noqa: B023, E731
        stops = tuple(word(5) for _ in range(random_.randint(0, 4)))
        pieces = [word(4) for _ in range(random_.randint(0, 8))]
        expected, met = cut(stops, "".join(pieces))
        assert shown(stops, pieces) == (expected, met), (stops, pieces)
        cutter, text = Stops(stops), ""
        for piece in pieces:
            text += cutter.add(piece)
            assert expected.startswith(text), (stops, pieces)


def test_only_a_possible_stop_string_is_held_back() -> None:
    stops = Stops(("abc", "bd"))
    assert [stops.add(piece) for piece in ("xa", "b", "x", "b", "a")] == ["x", "", "abx", "", "b"]
    assert (stops.met, stops.finish(), stops.finish()) == (False, "a", "")


def test_nothing_is_sent_after_the_stop_string() -> None:
    stops = Stops(("b",))
    assert [stops.add(piece) for piece in ("ab", "c")] == ["a", ""]
    assert (stops.met, stops.finish()) == (True, "")
