"""`chat` as a person meets it: typing, ctrl-C, the history, pictures dropped onto the terminal."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from command import MODEL
from pictures import TALL
from pseudo_terminal import CTRL_C, CTRL_D, UP, Terminal

ATTACHED = "it goes with the next question"
ANSWERING = r"reading…\r\x1b\[K.{5}"  # it has begun


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("history") / "lines"


@pytest.fixture
def chat(history: Path) -> Iterator[Terminal]:
    with Terminal("chat", TALL, "-m", MODEL, "-n", 6, history=history) as terminal:
        yield terminal


def test_a_conversation(chat: Terminal) -> None:
    chat.see(ATTACHED)
    chat.asked("What is in the picture?")
    assert "16 picture tokens" in chat.asked("/stats")
    chat.asked("Are you sure?")
    stats = chat.asked("/stats")
    assert " 0 picture tokens" in stats
    assert "known before" in stats
    assert "2 turn(s)" in stats
    history = chat.asked("/history")
    assert "> [1 picture(s)] What is in the picture?\r\n" in history
    assert "> Are you sure?\r\n" in history
    assert "Traceback" not in history
    chat.type(CTRL_D)
    assert chat.left() == 0


def test_what_goes_wrong_is_said_and_the_conversation_goes_on(chat: Terminal, tmp_path: Path) -> None:
    assert "no command and no file /imagine; /help lists" in chat.asked("/imagine")
    assert "cannot read '/nowhere.png'" in chat.asked("/image /nowhere.png")
    assert "marks 2 place(s)" in chat.asked("<image> and <image>?")
    assert "there is no folder" in chat.asked(f"/save {tmp_path}/gone/talk")
    assert "system prompt holds <image>" in chat.asked("/system look: <image>")
    assert "[system prompt: Be brief.]" in chat.asked("/system Be brief.")
    chat.asked("What is in the picture?")
    assert "1 turn(s)" in chat.asked("/stats")
    assert "/image PATH" in chat.asked("/help")
    chat.type("/exit\r")
    assert chat.left() == 0


def test_ctrl_c_stops_the_answer_and_not_the_program(history: Path) -> None:
    with Terminal("chat", "-m", MODEL, "-n", 100000, history=history) as chat:
        chat.prompt()
        chat.type("Hello there\r")
        chat.see(ANSWERING)
        chat.type(CTRL_C)
        chat.see(r"\[stopped\]")
        chat.prompt()
        chat.type("half a question")
        chat.see("half a question")
        time.sleep(2)  # readline hears a signal only while it waits for keys
        chat.type(CTRL_C)
        chat.see("ctrl-D or /exit leaves")
        assert "> Hello there" in chat.asked("/history")
        chat.prompt()
        chat.type("Go on\r")
        chat.see(ANSWERING)
        chat.type(CTRL_C)
        chat.see(r"\[stopped\]")
        assert "2 turn(s)" in chat.asked("/stats")
        chat.type(CTRL_D)
        assert chat.left() == 0


def test_the_history_lasts(history: Path) -> None:
    for keys in ("/system Once more.\r", f"{UP}\r"):
        with Terminal("chat", "-m", MODEL, history=history) as chat:
            chat.prompt()
            chat.type(keys)
            chat.see(r"\[system prompt: Once more\.\]")
            chat.prompt()
            chat.type(CTRL_D)
            assert chat.left() == 0
    assert history.stat().st_mode & 0o777 == 0o600


def test_pictures_are_dropped_as_terminals_write_their_paths(history: Path, tmp_path: Path) -> None:
    path = tmp_path / "My cat's (best) picture.png"
    shutil.copy(TALL, path)
    backslashes = "".join(f"\\{c}" if c in " '()" else c for c in str(path))
    quoted = "'" + str(path).replace("'", "'\\''") + "'"
    with Terminal("chat", "-m", MODEL, "-n", 3, history=history) as chat:
        for written in (backslashes + " ", quoted + " ", f"file://{quote(str(path))}", str(path)):
            assert ATTACHED in chat.asked(written)
            assert ATTACHED in chat.asked(f"/image {written}")
        chat.asked("How many are there?")
        assert "128 picture tokens" in chat.asked("/stats")
        assert ATTACHED in chat.asked(f"{backslashes} What is it?")
        stats = chat.asked("/stats")
        assert "2 turn(s)" in stats
        assert "pictures 1 kept" in stats  # one content, looked at once


def test_a_saved_conversation_is_resumed(chat: Terminal, history: Path, tmp_path: Path) -> None:
    file = tmp_path / "talk.session"
    assert "takes the name of a file" in chat.asked("/save")
    chat.asked("What is in the picture?")
    assert f"chat --resume {file}" in chat.asked(f"/save {file}")
    with Terminal("chat", "-m", MODEL, "-n", 6, "--resume", file, history=history) as again:
        assert "[1 picture(s)] What is in the picture?" in again.asked("/history")
        again.asked("Are you sure?")
        stats = again.asked("/stats")
        assert " 0 picture tokens" in stats
        assert "known before" in stats
        assert "saved" in again.asked("/save")  # to the same file
        assert "a new conversation" in again.asked("/clear")
        assert "0 turn(s)" in again.asked("/stats")


@pytest.mark.parametrize(
    ("environment", "options", "begins"),
    [
        ({"TERM_PROGRAM": "iTerm.app"}, (), "\x1b]1337;File=inline=1;"),
        ({"TERM": "xterm-kitty"}, (), "\x1b_Ga=T,f=100,"),
        ({"TERM": "xterm-kitty"}, ("--no-preview",), None),
        ({"TERM": "dumb"}, (), None),
    ],
    ids=["iTerm2", "kitty", "not wished", "a plain terminal"],
)
def test_pictures_are_shown_where_the_terminal_can(
    history: Path, environment: dict[str, str], options: tuple[str, ...], begins: str | None
) -> None:
    with Terminal("chat", TALL, "-m", MODEL, *options, history=history, **environment) as chat:
        seen = chat.see(ATTACHED)
    if begins is None:
        assert "\x1b" not in seen
    else:
        assert begins in seen
