"""A server under test, as its clients reach it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import httpx
from openai import OpenAI

from fastvlm_mlx.serve.engine import Engine

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
