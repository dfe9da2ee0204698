"""Serves a model on a port until a signal stops it."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable
from ipaddress import ip_address

import uvicorn

from ..errors import ConfigError
from ..vlm import VLM
from .app import Settings, application
from .engine import Engine

LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")


def is_local(host: str) -> bool:
    """Return whether only this machine can reach `host`."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def bound(host: str, port: int) -> socket.socket:
    """Return a listening socket. Call it before loading a model, so that a taken port fails at once."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(256)
        except OSError:
            listening.close()
            raise
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"cannot listen at {host} port {port} ({reason}); choose another --port") from None
    return listening


def serve(
    listening: socket.socket,
    settings: Settings,
    engine: Engine,
    ready: Callable[[VLM], None],
    drain_s: float,
) -> None:
    """Serve until SIGINT or SIGTERM, then let running answers finish for up to `drain_s`."""
    vlm = engine.start()
    config = uvicorn.Config(
        application(settings, vlm, engine),
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="off",
        timeout_graceful_shutdown=max(1, round(drain_s)),
    )
    # uvicorn raises the signal again after it has shut down; it must not end the process.
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        ready(vlm)
        uvicorn.Server(config).run(sockets=[listening])
    finally:
        engine.close()
        for number, handler in before.items():
            signal.signal(number, handler)
