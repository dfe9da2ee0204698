"""A server with a golden model, in a thread of the tests' process, at a port of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import uvicorn
from openai import OpenAI

from fastvlm_mlx import VLM
from fastvlm_mlx.serve.app import Settings, application
from fastvlm_mlx.serve.engine import Engine
from fastvlm_mlx.serve.listen import LOCAL_NAMES, bound

NAME = "golden"


@dataclass(frozen=True)
class Server:
    origin: str
    engine: Engine

    def client(self, **options: Any) -> OpenAI:
        return OpenAI(
            **{"base_url": f"{self.origin}/v1", "api_key": "none", "max_retries": 0, "timeout": 60} | options
        )

    def post(self, body: object, **headers: str) -> httpx.Response:
        with httpx.Client(base_url=self.origin, timeout=60) as client:
            content = {"content": body} if isinstance(body, bytes) else {"json": body}
            given = {"Content-Type": "application/json"} | headers
            return client.post("/v1/chat/completions", headers=given, **content)  # type: ignore[arg-type]

    def get(self, path: str, **headers: str) -> httpx.Response:
        with httpx.Client(base_url=self.origin, timeout=60) as client:
            return client.get(path, headers=headers)

    def idle(self) -> bool:
        """Whether, within some seconds, nobody has a place or waits for one."""
        for _ in range(500):
            if not self.engine.answering and not self.engine.waiting:
                return True
            time.sleep(0.02)
        return False


@pytest.fixture(scope="module")
def vlm(vlm_of: Callable[[str], VLM]) -> VLM:
    return vlm_of("apple-fused")


@pytest.fixture(scope="module")
def started(vlm: VLM) -> Iterator[Callable[..., Server]]:
    """Servers as told; they end with the module."""
    ends: list[Callable[[], None]] = []

    def start(places: int = 8, **settings: Any) -> Server:
        listening = bound("127.0.0.1", 0)
        engine = Engine(lambda: vlm, places=places)
        engine.start()
        told = {"name": NAME, "hosts": LOCAL_NAMES} | settings
        app = application(Settings(**told), vlm, engine)
        running = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()

        def end() -> None:
            running.should_exit = True
            thread.join(10)
            listening.close()
            engine.close()

        ends.append(end)
        return Server(f"http://127.0.0.1:{listening.getsockname()[1]}", engine)

    yield start
    for end in ends:
        end()


@pytest.fixture(scope="module")
def server(started: Callable[..., Server]) -> Server:
    return started()
