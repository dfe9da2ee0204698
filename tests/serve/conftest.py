"""Starts servers with a golden model in threads of the test process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvicorn
from served import NAME, Server

from fastvlm_mlx import VLM
from fastvlm_mlx.serve.app import Settings, application
from fastvlm_mlx.serve.engine import Engine
from fastvlm_mlx.serve.listen import LOCAL_NAMES, bound


@pytest.fixture(scope="module")
def vlm(vlm_of: Callable[[str], VLM]) -> VLM:
    return vlm_of("apple-fused")


@pytest.fixture(scope="module")
def started(vlm: VLM) -> Iterator[Callable[..., Server]]:
    """Start servers with these settings; they stop after the module's tests."""
    ends: list[Callable[[], None]] = []

    def start(places: int = 8, **settings: Any) -> Server:
        listening = bound("127.0.0.1", 0)
        engine = Engine(lambda: vlm, places=places)
        engine.start()
        given = {"name": NAME, "hosts": LOCAL_NAMES} | settings
        app = application(Settings(**given), vlm, engine)
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
