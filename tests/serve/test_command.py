"""`serve` as a user starts and stops it, and the example that asks it."""

from __future__ import annotations

import importlib.util
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from command import COMMAND, MODEL, PYTHON, Run, clean_environment
from pictures import TALL
from served import Server

ROOT = Path(__file__).parents[2]


def test_the_example_asks_and_shows(server: Server) -> None:
    told = subprocess.run(
        [*PYTHON, str(ROOT / "examples" / "openai_client.py"), str(TALL), "What is this?"],
        capture_output=True,
        text=True,
        timeout=120,
        env=clean_environment() | {"OPENAI_BASE_URL": f"{server.origin}/v1"},
        check=False,
    )
    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout.endswith("512 generated]\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--max-request", "50"), "--max-request '50'"),
        (("--memory", "lots"), "--memory 'lots'"),
        (("--api-key", " "), "the API key is empty"),
        (("--host", "no.such.host.invalid"), "cannot listen at no.such.host.invalid"),
    ],
)
def test_wrong_options_are_refused_before_a_model_is_loaded(
    run: Run, arguments: tuple[str, ...], said: str
) -> None:
    ran = run("serve", "-m", "no-such-model", "--port", "0", *arguments)
    assert ran.code == 1
    assert said in ran.err
    assert len(ran.err.splitlines()) == 1


def test_what_is_not_installed_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    ran = run("serve", "-m", MODEL)
    assert ran.code == 1
    assert "pip install 'fastvlm-mlx[serve]'" in ran.err


@contextmanager
def command(*arguments: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server in a process of its own, and its address."""
    told = [*COMMAND, "serve", "-m", MODEL, "--port", 0, *arguments]
    with subprocess.Popen(
        list(map(str, told)), stderr=subprocess.PIPE, text=True, env=clean_environment()
    ) as process:
        try:
            assert process.stderr
            address = next(line for line in process.stderr if line.startswith("page "))
            yield process, address.split()[1].rstrip("/")
        finally:
            process.kill()


@pytest.mark.parametrize("cycles", [4, pytest.param(200, marks=pytest.mark.slow)])
def test_stopped_it_ends_the_answers_that_have_begun(cycles: int) -> None:
    """And the process ends well, however its threads end."""
    messages = [{"role": "user", "content": "Hello"}]
    asked = {"messages": messages, "stream": True, "max_tokens": 300}
    for _ in range(cycles):
        with command() as (process, origin), httpx.Client(base_url=origin, timeout=60) as client:
            with client.stream("POST", "/v1/chat/completions", json=asked) as answer:
                lines = answer.iter_lines()
                next(lines)
                process.terminate()
                assert [line for line in lines if line][-1] == "data: [DONE]"
            assert process.wait(30) == 0


def test_a_port_that_is_taken_is_said_at_once(run: Run, server: Server) -> None:
    port = server.origin.rpartition(":")[2]
    ran = run("serve", "-m", MODEL, "--port", port)
    assert ran.code == 1
    assert f"port {port}" in ran.err
    assert len(ran.err.splitlines()) == 1
