"""A server of pictures on this machine, which answers well or badly as its path says."""

from __future__ import annotations

import contextlib
import ssl
import threading
import time
import urllib.parse
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from pictures import encoded, noise
from PIL import Image

PHOTO = noise(48, 64)
PNG = encoded(Image.fromarray(PHOTO))


class Server(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.seen.append((self.path, dict(self.headers)))  # type: ignore[attr-defined]
        path, _, argument = self.path[1:].partition("/")
        getattr(self, path.split("?")[0].replace(".png", ""), self.missing)(urllib.parse.unquote(argument))

    def missing(self, _: str) -> None:
        self.answer(404)

    def cat(self, _: str) -> None:
        self.answer(200, PNG)

    def to(self, target: str) -> None:
        self.answer(302, b"", Location=target)

    def hops(self, left: str) -> None:
        self.answer(307, b"", Location=f"/hops/{int(left) - 1}" if int(left) > 1 else "/cat.png")

    def chunked(self, _: str) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for n in range(0, len(PNG), 1000):
            piece = PNG[n : n + 1000]
            self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        self.wfile.write(b"0\r\n\r\n")

    def unsized(self, _: str) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(PNG)
        self.close_connection = True

    def short(self, _: str) -> None:
        self.answer(200, PNG, length=len(PNG) + 1)
        self.close_connection = True

    def drip(self, kind: str) -> None:
        """A byte now and then: of headers, or of the body."""
        line = (
            b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n" if kind == "body" else b"HTTP/1.1 200 OK\r\n"
        )
        self.wfile.write(line)
        with contextlib.suppress(OSError):
            for _ in range(100):
                self.wfile.write(b"x")
                time.sleep(0.05)
        self.close_connection = True

    def answer(self, status: int, body: bytes = b"", length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def serving(tls: ssl.SSLContext | None) -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.seen = []  # type: ignore[attr-defined]
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.01))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()
