"""A server that speaks to the live page as `serve` does, and answers, pauses and refuses as it is told."""

from __future__ import annotations

import base64
import io
import json
import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from PIL import Image

import fastvlm_mlx

PAGE = Path(fastvlm_mlx.__file__).parent / "serve" / "page.html"
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src 'self' blob: data:; media-src blob:; connect-src 'self'"
)
MODEL = {"id": "fastvlm-tiny", "object": "model", "created": 1, "owned_by": "fastvlm-mlx"}
IMAGE_SIZE = 256
TIMINGS = {"ttft_s": 0.05, "vision_s": 0.02, "prefill_s": 0.03, "tokens_per_s": 45.2, "image_tokens": 16}


@dataclass(frozen=True)
class Asked:
    body: dict[str, Any]
    question: str
    picture: Image.Image


@dataclass
class Manners:
    """How the next requests are met."""

    words: tuple[str, ...] = ("A ", "green ", "screen.")
    pause_s: float = 0.02  # before each word
    key: str | None = None
    breaks_off: bool = False
    headers: dict[str, str] = field(default_factory=dict)  # of the page


class StandIn(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.manners = Manners()
        self.refuses = False  # or did, or is gone
        self.refusals: list[tuple[int, str]] = []  # statuses and messages of the next requests
        self.asked: list[Asked] = []
        self.finished = 0
        self.broken_off = 0
        self.under_way = 0
        self.most_at_once = 0
        self.lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def refuse(self, status: int, message: str) -> None:
        """The next question."""
        self.refuses = True
        self.refusals.append((status, message))

    def go(self) -> None:
        self.refuses = True
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: StandIn

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing: stderr is the tests'."""

    def do_GET(self) -> None:
        if self.path == "/":
            headers = {"Content-Security-Policy": POLICY} | self.server.manners.headers
            self.reply(200, "text/html; charset=utf-8", PAGE.read_bytes(), headers)
        elif self.path == "/v1/models" and self.admitted():
            model = MODEL | {"image_size": IMAGE_SIZE, "dtype": "float32"}
            self.tell(200, {"object": "list", "data": [model]})
        elif self.path != "/v1/models":
            self.tell(404, {"error": {"message": f"nothing at {self.path}"}})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            picture, text = body["messages"][0]["content"]
            data = re.fullmatch(r"data:image/jpeg;base64,(.*)", picture["image_url"]["url"])
            assert data
            pixels = Image.open(io.BytesIO(base64.b64decode(data[1])))
            self.server.asked.append(Asked(body, text["text"], pixels.convert("RGB")))
            self.server.under_way += 1
            self.server.most_at_once = max(self.server.most_at_once, self.server.under_way)
        try:
            if self.admitted() and not self.refused():
                self.answer()
        except (BrokenPipeError, ConnectionResetError):
            self.server.broken_off += 1
        finally:
            with self.server.lock:
                self.server.under_way -= 1

    def admitted(self) -> bool:
        key = self.server.manners.key
        if key is None or self.headers["Authorization"] == f"Bearer {key}":
            return True
        self.tell(401, {"error": {"message": "a key is needed", "type": "authentication_error"}})
        return False

    def refused(self) -> bool:
        if not self.server.refusals:
            return False
        status, message = self.server.refusals.pop(0)
        error = {"message": message, "type": "server_error", "param": None, "code": None}
        self.tell(status, {"error": error}, {"Retry-After": "2"} if status == 429 else {})
        return True

    def answer(self) -> None:
        manners = self.server.manners
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for word in manners.words:
            time.sleep(manners.pause_s)
            self.event({"choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}]})
        if manners.breaks_off:
            return
        self.event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        usage = {"prompt_tokens": 40, "completion_tokens": len(manners.words), "total_tokens": 43}
        self.event({"choices": [], "usage": usage, "timings": TIMINGS})
        self.wfile.write(b"data: [DONE]\n\n")
        self.server.finished += 1

    def event(self, chunk: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
        self.wfile.flush()

    def tell(self, status: int, body: object, headers: dict[str, str] | None = None) -> None:
        self.reply(status, "application/json", json.dumps(body).encode(), headers or {})

    def reply(self, status: int, kind: str, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)
