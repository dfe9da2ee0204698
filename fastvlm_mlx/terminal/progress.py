"""A progress bar on stderr: alive in a terminal, silent in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import ProgressColumn, Task
    from rich.text import Text


@contextmanager
def bar(what: str, of: str = "bytes") -> Iterator[Callable[[int, int], None]]:
    """Yield a function of (done, in all), counted in bytes or in whatever `of` names."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return

    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), *_counters(of), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def bars(of: str) -> Iterator[Callable[[str, int, int], None]]:
    """Yield a function of (what, done, in all) that shows a bar for each thing in turn."""
    with ExitStack() as shown:
        last = ""
        advance: Callable[[int, int], None] = lambda done, total: None  # noqa: E731

        def update(what: str, done: int, total: int) -> None:
            nonlocal last, advance
            if what != last:
                shown.close()
                last, advance = what, shown.enter_context(bar(what, of))
            advance(done, total)

        yield update


def _counters(of: str) -> tuple[ProgressColumn, ...]:
    from rich.progress import DownloadColumn, MofNCompleteColumn, ProgressColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{of}, {task.speed:.1f} a second" if task.speed else of)

    return (DownloadColumn(),) if of == "bytes" else (MofNCompleteColumn(), Rate())
