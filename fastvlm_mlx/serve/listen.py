"""A model behind a port, from the first request to the last."""

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
    """Whether nobody but this machine can reach it."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def bound(host: str, port: int) -> socket.socket:
    """Before a model is loaded: a port that is taken is found out at once."""
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
    """Until SIGINT or SIGTERM; then answers that have begun get so long to end."""
    vlm = engine.start()
    config = uvicorn.Config(
        application(settings, vlm, engine),
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="off",
        timeout_graceful_shutdown=max(1, round(drain_s)),
    )
    # uvicorn raises the signal that ended it once more: it has done its work then.
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        ready(vlm)
        uvicorn.Server(config).run(sockets=[listening])
    finally:
        engine.close()
        for number, handler in before.items():
            signal.signal(number, handler)
