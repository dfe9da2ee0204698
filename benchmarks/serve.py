"""Many clients of one server: tokens a second against one client's, and that no answer is lost or mixed up.

    python benchmarks/serve.py MODEL [--clients 64] [--seconds 120] [--leave 200]

Every client asks about a picture of its own, whose answers are known from asking alone, again and again.
Then so many clients hang up in the middle of an answer.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from tiny import composing, drawing

QUESTIONS = ("Describe the picture.", "How many things are there?", "Is there a circle?")
PATH = "/v1/chat/completions"


@dataclass(frozen=True)
class Server:
    process: subprocess.Popen[str]
    origin: str

    def resident_mb(self) -> float:
        command = ["ps", "-o", "rss=", "-p", str(self.process.pid)]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) * 1024 / 1e6


@contextmanager
def started(model: Path) -> Iterator[Server]:
    command = [sys.executable, "-m", "fastvlm_mlx", "serve", "-m", str(model), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr
            address = next(line for line in process.stderr if line.startswith("page "))
            yield Server(process, address.split()[1].rstrip("/"))
        finally:
            process.terminate()


def asked(number: int, question: str, **more: Any) -> dict[str, Any]:
    """Of a picture that no other client has."""
    file = io.BytesIO()
    Image.fromarray(drawing.draw(composing.scene(7, number, "test"))).save(file, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 64} | more


async def ask(client: httpx.AsyncClient, request: dict[str, Any], outcomes: Counter[str]) -> str | None:
    answer = await client.post(PATH, json=request)
    if answer.status_code == 429:
        outcomes["429"] += 1
        await asyncio.sleep(float(answer.headers["Retry-After"]))
        return None
    answer.raise_for_status()
    outcomes["answers"] += 1
    outcomes["tokens"] += answer.json()["usage"]["completion_tokens"]
    text: str = answer.json()["choices"][0]["message"]["content"]
    return text


async def load(
    origin: str, requests: list[list[dict[str, Any]]], known: list[list[str]], seconds: float
) -> Counter[str]:
    outcomes: Counter[str] = Counter()
    until = time.monotonic() + seconds

    async def one(number: int) -> None:
        async with httpx.AsyncClient(base_url=origin, timeout=120) as client:
            turn = number
            while time.monotonic() < until:
                place = turn % len(QUESTIONS)
                text = await ask(client, requests[number][place], outcomes)
                if text is not None:
                    outcomes["wrong"] += text != known[number][place]
                    turn += 1

    await asyncio.gather(*(one(number) for number in range(len(requests))))
    return outcomes


async def leave(origin: str, count: int) -> None:
    async def one(number: int) -> None:
        request = asked(number, QUESTIONS[0], stream=True, max_tokens=512, temperature=1.5)
        async with (
            httpx.AsyncClient(base_url=origin, timeout=120) as client,
            client.stream("POST", PATH, json=request) as answer,
        ):
            lines = answer.aiter_lines()
            for _ in range(1 + number % 7):
                await anext(lines, None)

    for start in range(0, count, 20):
        await asyncio.gather(*(one(number) for number in range(start, min(start + 20, count))))


async def measure(server: Server, clients: int, seconds: float, left: int) -> None:
    requests = [[asked(number, question) for question in QUESTIONS] for number in range(clients)]
    nothing: Counter[str] = Counter()
    async with httpx.AsyncClient(base_url=server.origin, timeout=120) as client:
        known = [[await ask(client, request, nothing) or "" for request in several] for several in requests]
        texts = [text for several in known for text in several]
        print(f"{len(texts)} answers known, {len(set(texts))} of them different\n")
        print("| clients | answers/s | tokens/s | ratio | 429 | wrong | resident MB before | after |")
        print("|--:|--:|--:|--:|--:|--:|--:|--:|")
        alone = 0.0
        for count in dict.fromkeys((1, 8, clients)):
            lasted, before = seconds if count == clients else seconds / 4, server.resident_mb()
            found = await load(server.origin, requests[:count], known[:count], lasted)
            answers, tokens = found["answers"] / lasted, found["tokens"] / lasted
            alone = alone or tokens
            cells = f"{count} | {answers:.1f} | {tokens:.0f} | {tokens / alone:.2f} | {found['429']}"
            print(f"| {cells} | {found['wrong']} | {before:.0f} | {server.resident_mb():.0f} |")
        await leave(server.origin, left)
        for _ in range(100):
            health = (await client.get("/health")).json()
            if not health["answering"] and not health["waiting"]:
                break
            await asyncio.sleep(0.1)
        right = await ask(client, requests[0][0], nothing) == known[0][0]
    print(f"\n{left} hung up in the middle: {health}; the next answer is {'right' if right else 'WRONG'}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--leave", type=int, default=200)
    told = parser.parse_args()
    with started(told.model) as server:
        asyncio.run(measure(server, told.clients, told.seconds, told.leave))


if __name__ == "__main__":
    main()
