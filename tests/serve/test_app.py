"""The server as its clients see it: OpenAI's official client, and clients that send bad requests."""

from __future__ import annotations

import base64
import io
import json
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image
from served import NAME, Server

from fastvlm_mlx import VLM
from fastvlm_mlx.serve import app, json_schema

ROOT = Path(__file__).parents[2]
Started = Callable[..., Server]


def random_png(seed: int, side: int = 128) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def link(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def shown(data: bytes) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": link(data)}}


def user(*pieces: object) -> dict[str, Any]:
    if len(pieces) == 1 and isinstance(pieces[0], str):
        return {"role": "user", "content": pieces[0]}
    return {
        "role": "user",
        "content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in pieces],
    }


def body(**fields: object) -> dict[str, object]:
    return {"model": NAME, "messages": [user("Hello")], "max_tokens": 4} | fields


def test_answer_equals_generate(server: Server, vlm: VLM) -> None:
    picture = random_png(1)
    answer = server.client().chat.completions.create(
        model=NAME, messages=[user(shown(picture), "What is this?")], max_tokens=12
    )
    expected = vlm.generate(vlm.prompt("What is this?", [picture]), max_tokens=12)
    (choice,) = answer.choices
    assert (choice.message.content, choice.finish_reason) == (expected.text, expected.reason)
    assert answer.usage
    assert answer.usage.prompt_tokens == expected.image_tokens + expected.text_tokens
    assert answer.usage.completion_tokens == 12
    timings = answer.model_extra["timings"]  # type: ignore[index]
    assert timings["image_tokens"] == 16
    assert 0 < timings["vision_s"] < timings["ttft_s"]


def test_stream_joins_to_the_same_answer(server: Server, vlm: VLM) -> None:
    chunks = list(
        server.client().chat.completions.create(
            model=NAME,
            messages=[user("Hello there")],
            max_completion_tokens=12,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    expected = vlm.generate("Hello there", max_tokens=12)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == expected.text
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert {c.id for c in chunks} == {chunks[0].id}
    assert chunks[-1].usage
    assert chunks[-1].usage.completion_tokens == 12


def test_several_turns_and_pictures_equal_generate(server: Server, vlm: VLM) -> None:
    first, second = random_png(1), random_png(2)
    messages = [
        {"role": "system", "content": "Be brief."},
        user("First", shown(first), "then", shown(second), "what changed?"),
        {"role": "assistant", "content": "Nothing."},
        user("Are you sure?"),
    ]
    answer = server.client().chat.completions.create(model=NAME, messages=messages, max_tokens=9)  # type: ignore[arg-type]
    from fastvlm_mlx.inputs.prompt import assemble, chatml_turns

    turns = ["First\n<image>\nthen\n<image>\nwhat changed?", "Nothing.", "Are you sure?"]
    text = "".join(chatml_turns(turns, 2, "Be brief."))
    prompt = assemble(text, [vlm.picture(first), vlm.picture(second)], vlm.tokenizer.encode)
    assert answer.choices[0].message.content == vlm.generate(prompt, max_tokens=9).text


def test_second_turn_prefills_only_its_own_text(server: Server) -> None:
    client, turn = server.client(), [user(shown(random_png(7)), "What is this?")]
    first = client.chat.completions.create(model=NAME, messages=turn, max_tokens=6)  # type: ignore[arg-type]
    answer = {"role": "assistant", "content": first.choices[0].message.content}
    hits = server.engine.features.hits, server.engine.features.misses
    again = [*turn, answer, user("Why?")]
    second = client.chat.completions.create(model=NAME, messages=again, max_tokens=6)  # type: ignore[arg-type]
    assert first.usage
    assert second.usage
    assert second.usage.prompt_tokens_details
    assert (second.usage.prompt_tokens_details.cached_tokens or 0) >= first.usage.prompt_tokens - 1
    assert (server.engine.features.hits, server.engine.features.misses) == hits


def test_stop_seed_and_logprobs_are_applied(server: Server, vlm: VLM) -> None:
    client = server.client()
    whole = vlm.generate("Hello", max_tokens=16)
    cut = whole.text[len(whole.text) // 2 :][:3]
    stopped = client.chat.completions.create(model=NAME, messages=[user("Hello")], max_tokens=16, stop=[cut])
    assert stopped.choices[0].message.content == whole.text[: whole.text.find(cut)]
    assert stopped.choices[0].finish_reason == "stop"
    sampled_twice = [
        client.chat.completions.create(
            model=NAME, messages=[user("Hello")], max_tokens=8, temperature=1.0, top_p=0.9, seed=5
        )
        for _ in range(2)
    ]
    assert len({answer.choices[0].message.content for answer in sampled_twice}) == 1
    likely = client.chat.completions.create(
        model=NAME, messages=[user("Hello")], max_tokens=3, logprobs=True, top_logprobs=2
    )
    assert likely.choices[0].logprobs
    content = likely.choices[0].logprobs.content
    assert content
    assert len(content) == 3
    for token in content:
        assert len(token.top_logprobs) == 2
        assert token.logprob == token.top_logprobs[0].logprob  # greedy


def test_answer_matches_the_json_schema(server: Server) -> None:
    schema = {
        "type": "object",
        "properties": {"count": {"type": "integer", "maximum": 9, "minimum": 0}, "sure": {"type": "boolean"}},
        "required": ["count", "sure"],
        "additionalProperties": False,
    }
    answer = server.client().chat.completions.create(
        model=NAME,
        messages=[user("Hello")],
        max_tokens=100,
        response_format={"type": "json_schema", "json_schema": {"name": "counted", "schema": schema}},
    )
    assert answer.choices[0].finish_reason == "stop"
    found = json.loads(answer.choices[0].message.content or "")
    assert found.keys() == {"count", "sure"}
    assert found["count"] in range(10)


def test_concurrent_answers_are_not_mixed_up(server: Server, vlm: VLM) -> None:
    pictures = [random_png(seed, 64 + seed) for seed in range(16)]
    expected = [
        vlm.generate(vlm.prompt("What is this?", [p]), max_tokens=6 + n).text for n, p in enumerate(pictures)
    ]

    def answer(number: int) -> str | None:
        answer = server.client().chat.completions.create(
            model=NAME, messages=[user(shown(pictures[number]), "What is this?")], max_tokens=6 + number
        )
        return answer.choices[0].message.content

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(answer, range(16))) == expected
    assert server.idle()


@pytest.mark.parametrize("stream", [True, False])
def test_disconnected_client_frees_its_place(server: Server, stream: bool) -> None:
    def ask_and_leave(number: int) -> None:
        request = body(stream=stream, max_tokens=100_000, messages=[user(f"Hello {number}")])
        with httpx.Client(base_url=server.origin, timeout=60) as client:
            if stream:
                with client.stream("POST", "/v1/chat/completions", json=request) as answer:
                    next(answer.iter_lines())
            else:
                with pytest.raises(httpx.ReadTimeout):
                    client.post("/v1/chat/completions", json=request, timeout=httpx.Timeout(60, read=1))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask_and_leave, range(8)))
    assert server.idle()
    assert server.post(body()).status_code == 200


def test_full_queue_answers_429_with_retry_after(started: Started) -> None:
    server = started(places=1, queue=1)
    for _ in range(50):
        assert server.post(b"{").status_code == 400  # its short time must not lower Retry-After
    gone = threading.Event()

    def hold() -> None:
        with (
            httpx.Client(base_url=server.origin, timeout=60) as client,
            client.stream(
                "POST", "/v1/chat/completions", json=body(stream=True, max_tokens=100_000)
            ) as answer,
        ):
            lines = answer.iter_lines()
            while not gone.is_set():
                next(lines)

    with ThreadPoolExecutor(2) as pool:
        holding = [pool.submit(hold) for _ in range(2)]
        for _ in range(500):
            if server.engine.answering and server.engine.waiting:
                break
            time.sleep(0.02)
        try:
            refused = server.post(body())
            with pytest.raises(openai.RateLimitError):
                server.client().chat.completions.create(model=NAME, messages=[user("Hello")])
        finally:
            gone.set()
        for task in holding:
            task.cancel()
    assert refused.status_code == 429
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert 2 <= int(refused.headers["Retry-After"]) <= 60
    assert server.idle()
    assert server.post(body()).status_code == 200


def test_json_tables_are_built_once(started: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[object] = []
    sound = json_schema.SchemaCompiler.__init__

    def slow(self: json_schema.SchemaCompiler, *arguments: Any) -> None:
        built.append(self)
        time.sleep(0.2)
        sound(self, *arguments)

    monkeypatch.setattr(json_schema.SchemaCompiler, "__init__", slow)
    server = started()
    request = body(response_format={"type": "json_object"}, max_tokens=1)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: server.post(request).status_code, range(4)))
    assert answers == [200] * 4
    assert len(built) == 1


def body_with_picture(url: str) -> dict[str, object]:
    return body(messages=[user({"type": "image_url", "image_url": url}, "?")])


BOMB = Image.new("1", (20_000, 20_000))


def bomb() -> bytes:
    file = io.BytesIO()
    BOMB.save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("sent", "status", "message"),
    [
        (b"{", 400, "not JSON"),
        (b"[]", 400, "object"),
        (body(messages="Hello"), 400, "messages"),
        (body(messages=[]), 400, "empty"),
        (body(model="gpt-4o"), 404, "gpt-4o"),
        (body(temperature=-1), 400, "temperature"),
        (body(max_tokens="many"), 400, "max_tokens"),
        (body(n=3), 400, "n is 3"),
        (body(messages=[user("word " * 10_000)]), 400, "shorten"),
        (body_with_picture(link(b"no picture at all")), 400, "picture"),
        (body_with_picture("data:image/png;base64,%%%"), 400, "base64"),
        (body_with_picture("file:///etc/passwd"), 400, "http"),
        (body_with_picture("/etc/passwd"), 400, "http"),
        (body_with_picture("http://127.0.0.1/x"), 400, "remote"),
        (body_with_picture("http://169.254.169.254/"), 400, "remote"),
    ],
    ids=lambda value: "" if isinstance(value, bytes | dict) else str(value),
)
def test_bad_requests_get_openai_errors(server: Server, sent: object, status: int, message: str) -> None:
    refused = server.post(sent)
    assert refused.status_code == status
    error = refused.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert message in error["message"]
    assert "\n" not in error["message"]
    assert server.post(body()).status_code == 200


def test_large_pictures_and_requests_are_refused(server: Server, started: Started) -> None:
    huge = server.post(body(messages=[user(shown(bomb()), "?")]))
    assert (huge.status_code, huge.json()["error"]["code"]) == (400, "invalid_image")
    small = started(body_bytes=100_000)
    assert small.post(b" " * 200_000).status_code == 413
    assert small.post(body()).status_code == 200


def test_too_many_pictures_in_one_request_are_refused(server: Server) -> None:
    crowd = [{"type": "image_url", "image_url": link(random_png(1))}] * 17
    refused = server.post(body(messages=[user(*crowd, "?")]))
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "too_many_images")


def test_slow_request_times_out(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "_BODY_S", 0.3)
    address = server.origin.removeprefix("http://").split(":")
    with socket.create_connection((address[0], int(address[1])), timeout=60) as slow:
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        slow.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
        assert slow.recv(4096).startswith(b"HTTP/1.1 408")


def test_requests_without_the_key_are_refused(started: Started) -> None:
    server = started(api_key="secret")
    with pytest.raises(openai.AuthenticationError):
        server.client(api_key="guess").models.list()
    for path in ("/v1/models", "/metrics"):
        assert server.get(path).status_code == 401
    assert [model.id for model in server.client(api_key="secret").models.list()] == [NAME]
    assert server.client(api_key="secret").models.retrieve(NAME).id == NAME
    assert server.post(body(), Authorization="Bearer secret").status_code == 200
    assert server.get("/").status_code == server.get("/health").status_code == 200


def test_pages_of_other_origins_are_refused(server: Server, started: Started) -> None:
    assert server.post(body(), **{"Content-Type": "text/plain"}).status_code == 415
    assert server.post(body(), Host="[").status_code == 400
    assert server.post(body(), Host="evil.example:80").status_code == 403
    assert server.get("/", Host="evil.example").status_code == 403
    assert "access-control-allow-origin" not in server.get("/health", Origin="https://evil.example").headers
    friendly = started(origins=("https://example.org",))
    allowed = friendly.get("/health", Origin="https://example.org")
    assert allowed.headers["access-control-allow-origin"] == "https://example.org"
    assert "access-control-allow-origin" not in friendly.get("/health", Origin="https://evil.example").headers


def test_unknown_routes_and_models_get_openai_errors(server: Server) -> None:
    for path, status in (("/v1/embeddings", 404), ("/v1/chat/completions", 405), ("/v1/models/other", 404)):
        found = server.get(path)
        assert found.status_code == status
        assert found.json()["error"]["message"]


def test_metrics_count_requests_tokens_and_cache_hits(started: Started) -> None:
    server = started()
    for _ in range(2):
        assert server.post(body(messages=[user(shown(random_png(3)), "What?")])).status_code == 200
    assert server.post(b"{").status_code == 400
    metrics = dict(
        line.rsplit(" ", 1) for line in server.get("/metrics").text.splitlines() if not line.startswith("#")
    )
    assert metrics['fastvlm_requests_total{status="200"}'] == "2.0"
    assert metrics['fastvlm_requests_total{status="400"}'] == "1.0"
    assert metrics["fastvlm_answer_tokens_total"] == "8.0"
    assert metrics["fastvlm_first_token_seconds_count"] == "2.0"
    assert metrics["fastvlm_picture_misses"] == "1.0"
    assert float(metrics["fastvlm_prompt_tokens_known"]) > 0
