"""A conversation in a terminal, or with whatever writes lines: answers on stdout, all else on stderr."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain, takewhile
from pathlib import Path

from PIL import Image

from ..config import IMAGE_MARK
from ..errors import ConfigError, FastVLMError, PromptError
from ..inference.allocator import wired
from ..inference.decoding import Event, Finished
from ..inference.generate import Answer, collect
from ..inference.sampling import Sampling
from ..inference.session import Session
from ..inputs.image import Source, open_image, open_source
from ..inputs.prompt import Picture, insert_marks, positions
from ..inputs.tiling import ImageOptions
from ..inputs.video import Video, first_frame, is_video
from . import output, progress
from .path_input import split_paths
from .preview import inline

PROMPT = "> "
_MARKS = re.compile(rf"(\[[\d:.]+\] )?({IMAGE_MARK})+")


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """What holds for every question."""

    max_tokens: int
    sampling: Sampling
    options: ImageOptions
    preview: bool
    wired: bool


@dataclass(slots=True)
class Chat:
    session: Session
    options: ChatOptions
    interactive: bool  # somebody watches: errors and ctrl-C end one answer, and not the program
    file: Path | None = None  # where /save writes if it is not told
    # For the next question: the marks of a picture or a video, and its pieces.
    pending: list[tuple[str, tuple[Picture, ...]]] = field(default_factory=list)
    last: Answer | None = None

    def show(self, source: Source | Video) -> None:
        """Put a picture or a video to the next question."""
        if is_video(source):
            source = Video(source)
        opened = (
            first_frame(source)
            if isinstance(source, Video)
            else open_image(source, reference=self.options.options.reference)
        )
        if self.options.preview and sys.stderr.isatty() and (shown := inline(opened, os.environ)):
            output.status(shown)
        marks, parts, read = self._read(source if isinstance(source, Video) else opened)
        self.pending.append((marks, parts))
        if sys.stderr.isatty():
            told = f"{opened.width}×{opened.height} pixels, {read}, {positions(parts)} tokens"
            output.status(f"[{told}; it goes with the next question]")

    def _read(self, source: Image.Image | Video) -> tuple[str, tuple[Picture, ...], str]:
        """Marks, pieces, and what to say of them."""
        vlm, options = self.session.vlm, self.options.options
        if isinstance(source, Video):
            with progress.bars("frames") as advance:
                clip = vlm.clip(source, options, progress=advance)
            torn = f" ({clip.damaged} damaged packets left out)" if clip.damaged else ""
            read = f"read as {len(clip.frames)} frames{torn}"
            return clip.marks, tuple(chain.from_iterable(clip.frames)), read
        parts = vlm.pictures(source, options)
        height, width = parts[0].pixels.shape[1:3]
        tiles = f" and {len(parts) - 1} tiles of it" if len(parts) > 1 else ""
        return IMAGE_MARK * len(parts), parts, f"read as {width}×{height}{tiles}"

    def ask(self, text: str) -> None:
        """Ask, and show the answer as it comes. Stopped, what was said stays."""
        session, before, self.last = self.session, self.session.turns, None
        events = session.stream(
            insert_marks(text, [marks for marks, _ in self.pending]),
            [picture for _, parts in self.pending for picture in parts],
            max_tokens=self.options.max_tokens,
            sampling=self.options.sampling,
        )
        told: list[Event] = []
        try:
            with wired(session.vlm, self.options.wired):
                told.extend(output.print_stream(_with_notice(events, bool(self.pending))))
        except KeyboardInterrupt:
            if not self.interactive:
                raise
            events.close()  # type: ignore[attr-defined]
            output.print_line("")
            kept = session.turns != before
            output.status("[stopped]" if kept else "[stopped; nothing had been said, so nothing was asked]")
        sys.stdout.flush()
        if told and isinstance(told[-1], Finished):
            self.last = collect(iter(told))
        if session.turns != before:
            self.pending.clear()
            if gone := len(before) + 1 - len(session.turns):
                output.status(f"[the context is full: the {gone} oldest turn(s) went out of it]")

    def answer(self, line: str) -> None:
        """A line that was typed: a command, dropped pictures, a question, or pictures and a question."""
        word, _, rest = line.strip().partition(" ")
        if command := COMMANDS.get(word):
            command.do(self, rest.strip())
            return
        paths, question = split_paths(line)
        if not paths and word.startswith("/"):
            raise PromptError(f"no command and no file {word}; /help lists the commands")
        for path in paths:
            self.show(path)
        if question:
            self.ask(question)


def run(chat: Chat, read: Callable[[], str]) -> None:
    """Until the lines end."""
    while True:
        try:
            line = read()
        except EOFError:
            break
        except KeyboardInterrupt:
            if not chat.interactive:
                raise
            output.status("\n[ctrl-D or /exit leaves]")
            continue
        try:
            chat.answer(line)
        except EOFError:
            return
        except KeyboardInterrupt:
            if not chat.interactive:
                raise
            output.status("\n[stopped]")
        except FastVLMError as error:
            if not chat.interactive:
                raise
            output.status(f"[{' '.join(str(error).splitlines())}]")
    if chat.interactive:
        output.status("")  # the shell's prompt begins a line


def _with_notice(events: Iterator[Event], pictures: bool) -> Iterator[Event]:
    """Say that something is going on until something comes."""
    if not sys.stderr.isatty():
        yield from events
        return
    sys.stderr.write("looking…" if pictures else "reading…")
    sys.stderr.flush()
    try:
        first = next(events, None)
    finally:
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()
    if first is not None:
        yield first
    yield from events


# --- commands ---


def _image(chat: Chat, rest: str) -> None:
    paths, left = split_paths(rest)
    if not rest:
        raise PromptError("/image takes a picture: a path or an http(s) address")
    if rest == "-":
        raise ConfigError("standard input is where the questions come from; name a file")
    for path in paths:
        chat.show(path)
    if left:
        chat.show(open_source(os.path.expanduser(left)))


def _clear(chat: Chat, rest: str) -> None:
    chat.session.clear()
    chat.pending.clear()
    chat.last = None
    output.status("[a new conversation]")


def _system(chat: Chat, rest: str) -> None:
    if rest:
        chat.session.system = "" if rest == "-" else rest
    system = chat.session.system
    output.status(f"[system prompt: {'the usual one' if system is None else system or 'none'}]")


def _stats(chat: Chat, rest: str) -> None:
    session, features = chat.session, chat.session.features
    taken = positions(session.prompt())
    if chat.last is not None:
        output.status(output.describe_stats(chat.last))
    output.status(
        f"context  {taken} of {session.context} positions, {len(session.turns)} turn(s), "
        f"{session.nbytes / 1e6:.1f} MB of keys and values\n"
        f"pictures {len(features)} kept, {features.nbytes / 1e6:.1f} MB"
    )


def _history(chat: Chat, rest: str) -> None:
    for turn in chat.session.turns:
        # Pictures in pieces and a video's frames have a line of marks each before the question.
        lines = turn.question.split("\n")
        marks = list(takewhile(_MARKS.fullmatch, lines))
        count, question = len(marks) or len(turn.pictures), "\n".join(lines[len(marks) :])
        shown = f"[{count} picture(s)] " if count else ""
        output.status(f"{PROMPT}{shown}{question}\n{turn.text}\n")


def _save(chat: Chat, rest: str) -> None:
    file = Path(os.path.expanduser(rest)) if rest else chat.file
    if file is None:
        raise PromptError("/save takes the name of a file")
    chat.session.save(file)
    chat.file = file
    output.status(f"[saved, {file.stat().st_size / 1e6:.1f} MB; chat --resume {file} goes on with it]")


def _exit(chat: Chat, rest: str) -> None:
    raise EOFError


def _help(chat: Chat, rest: str) -> None:
    width = max(len(f"{name} {command.takes}") for name, command in COMMANDS.items())
    for name, command in COMMANDS.items():
        output.status(f"{f'{name} {command.takes}':<{width}}  {command.help}")
    output.status(
        "Anything else is a question; pictures dropped onto the terminal go with it or with the next."
    )


@dataclass(frozen=True, slots=True)
class Command:
    do: Callable[[Chat, str], None]
    takes: str
    help: str


COMMANDS = {
    "/image": Command(_image, "PATH", "put a picture or a video to the next question; http(s) works too"),
    "/clear": Command(_clear, "", "begin a new conversation"),
    "/system": Command(_system, "[TEXT]", "another system prompt, - for none; by itself shows it"),
    "/history": Command(_history, "", "what was asked and answered"),
    "/stats": Command(_stats, "", "where the last answer's time went, and what is kept"),
    "/save": Command(_save, "[FILE]", "write the conversation to a file, or to its file once more"),
    "/help": Command(_help, "", "this"),
    "/exit": Command(_exit, "", "leave; ctrl-D does too"),
}
