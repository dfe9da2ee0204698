"""The `serve` command, from start to stop, and the example client."""

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


def test_example_client_prints_an_answer(server: Server) -> None:
    ran = subprocess.run(
        [*PYTHON, str(ROOT / "examples" / "openai_client.py"), str(TALL), "What is this?"],
        capture_output=True,
        text=True,
        timeout=120,
        env=clean_environment() | {"OPENAI_BASE_URL": f"{server.origin}/v1"},
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.endswith("512 generated]\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--max-request", "50"), "--max-request '50'"),
        (("--memory", "lots"), "--memory 'lots'"),
        (("--api-key", " "), "--api-key is empty"),
        (("--host", "no.such.host.invalid"), "cannot listen at no.such.host.invalid"),
    ],
)
def test_bad_options_fail_before_loading_the_model(
    run: Run, arguments: tuple[str, ...], message: str
) -> None:
    ran = run("serve", "-m", "no-such-model", "--port", "0", *arguments)
    assert ran.code == 1
    assert message in ran.err
    assert len(ran.err.splitlines()) == 1


def test_missing_packages_are_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    ran = run("serve", "-m", MODEL)
    assert ran.code == 1
    assert "pip install 'fastvlm-mlx[serve]'" in ran.err


@contextmanager
def command(*arguments: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start a server process; yield it and its address."""
    line = [*COMMAND, "serve", "-m", MODEL, "--port", 0, *arguments]
    with subprocess.Popen(
        list(map(str, line)), stderr=subprocess.PIPE, text=True, env=clean_environment()
    ) as process:
        try:
            assert process.stderr
            address = next(row for row in process.stderr if row.startswith("page "))
            yield process, address.split()[1].rstrip("/")
        finally:
            process.kill()


@pytest.mark.parametrize("cycles", [4, pytest.param(200, marks=pytest.mark.slow)])
def test_sigterm_finishes_running_answers_and_exits_with_0(cycles: int) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    request = {"messages": messages, "stream": True, "max_tokens": 300}
    for _ in range(cycles):
        with command() as (process, origin), httpx.Client(base_url=origin, timeout=60) as client:
            with client.stream("POST", "/v1/chat/completions", json=request) as answer:
                lines = answer.iter_lines()
                next(lines)
                process.terminate()
                assert [line for line in lines if line][-1] == "data: [DONE]"
            assert process.wait(30) == 0


def test_taken_port_fails_at_once(run: Run, server: Server) -> None:
    port = server.origin.rpartition(":")[2]
    ran = run("serve", "-m", MODEL, "--port", port)
    assert ran.code == 1
    assert f"port {port}" in ran.err
    assert len(ran.err.splitlines()) == 1
