"""Captions every picture, in batches, and writes each caption at once.

Threads open and preprocess pictures ahead of the model. A batch may contain pictures of several parts.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import mlx.core as mx

from ..errors import FastVLMError, PromptError
from ..inference.sampling import Sampling
from ..inputs import prefetch
from ..inputs.image import preprocess
from ..inputs.prompt import Picture, Prompt, positions
from ..vlm import VLM
from . import wording
from .items import Item, fields, opened
from .ledger import CaptionSettings, Ledger, Part, Records

POLL_S = 1.0  # between checks of parts that other processes hold
BUCKETS = 4  # batches sorted together by prompt length if prompts differ

Prepared = tuple["Task", Picture | FastVLMError]


@dataclass(frozen=True, slots=True)
class Task:
    part: Part
    item: Item
    text: str


@dataclass(frozen=True, slots=True)
class Asking:
    """Options of this process that do not change the captions."""

    batch: int
    fields: frozenset[str]  # in the prompt; if empty, all pictures have one prompt
    retry: bool  # pictures that failed in earlier launches


class Work:
    """This process's share. `done` counts all finished pictures, `made` those that this process finished."""

    def __init__(
        self,
        vlm: VLM,
        settings: CaptionSettings,
        asking: Asking,
        ledger: Ledger,
        progress: Callable[[int, int], None],
        say: Callable[[str], None],
    ):
        self.made = 0
        self._total = 0
        self._vlm, self._settings, self._asking, self._ledger = vlm, settings, asking, ledger
        self._progress, self._say = progress, say
        self._of: dict[int, list[Item]] = {}  # items by part
        self._done: dict[int, int] = {}
        self._held: list[Part] = []

    def finish(self, items: Sequence[Item], numbers: Sequence[int]) -> None:
        """Work until these parts are done, including parts of processes that die."""
        for item in items:
            self._of.setdefault(self._ledger.part_of(item), []).append(item)
        self._total = len(items)
        records = self._ledger.records()
        self._done = {number: len(of) - len(self._left(of, records)) for number, of in self._of.items()}
        try:
            self._report()
            numbers, noted = [number for number in numbers if number in self._of], False
            while numbers := self._round(numbers):
                if not noted:
                    self._say(f"note: waiting for {self._total - self.done:,} pictures of other processes")
                noted = True
                time.sleep(POLL_S)
        finally:
            for part in self._held:
                part.close()

    def _round(self, numbers: Sequence[int]) -> list[int]:
        """Caption every part that is free; return the parts that other processes hold."""
        busy: list[int] = []
        pending: deque[Task] = deque()
        tasks = self._bucketed(self._claimed(numbers, busy))
        prepared = prefetch.map_ahead(self._prepared, tasks, self._asking.batch)
        how = self._settings
        sampling = Sampling(
            how.temperature, how.top_p, how.top_k, how.min_p, how.repetition_penalty, how.seed
        )
        prompts = self._prompts(prepared, pending)
        for answer in self._vlm.answers(
            prompts, batch=self._asking.batch, max_tokens=how.max_tokens, sampling=sampling
        ):
            caption = {"caption": answer.text.strip(), "tokens": len(answer.ids), "reason": answer.reason}
            self._write(pending.popleft(), caption)
        return busy

    def _claimed(self, numbers: Sequence[int], busy: list[int]) -> Iterator[Task]:
        """Claim parts only when work is needed, so that faster processes take more."""
        for number in numbers:
            part = self._ledger.claim(number)
            if part is None:
                busy.append(number)
                continue
            self._held.append(part)
            items = self._left(self._of[number], part.records)
            part.left = len(items)
            self._done[number] = len(self._of[number]) - len(items)
            if not items:
                self._report()
                part.close()
            for item in items:
                try:
                    yield Task(part, item, self._text(item))
                except FastVLMError as error:
                    self._fail(Task(part, item, ""), error)
            self._held = [part for part in self._held if part.left > 0]

    def _left(self, items: Sequence[Item], records: Records) -> list[Item]:
        return [item for item in items if not self._ledger.is_done(records.get(item.key), self._asking.retry)]

    def _text(self, item: Item) -> str:
        if not self._asking.fields:
            return self._settings.prompt
        return wording.worded(self._settings.prompt, fields(item))

    def _bucketed(self, tasks: Iterator[Task]) -> Iterator[Task]:
        if not self._asking.fields:
            yield from tasks
            return
        while drawn := list(islice(tasks, BUCKETS * self._asking.batch)):
            yield from sorted(drawn, key=lambda task: len(self._vlm.tokenizer.encode(task.text)))

    def _prepared(self, task: Task) -> Prepared:
        how = self._settings
        try:
            source = opened(task.item)
            pixels = preprocess(source, how.image_size, how.image_mode, reference=how.reference)
            return task, Picture(mx.array(pixels[None]))
        except FastVLMError as error:
            return task, error

    def _prompts(self, prepared: Iterable[Prepared], pending: deque[Task]) -> Iterator[Prompt]:
        context = self._vlm.config.text.context
        for task, picture in prepared:
            try:
                if isinstance(picture, FastVLMError):
                    raise picture
                prompt = self._vlm.prompt(task.text, [picture], self._settings.system)
                if positions(prompt) > context:
                    raise PromptError(
                        f"takes {positions(prompt)} positions but the model's context is {context}; use a "
                        "shorter prompt or a smaller --image-size"
                    )
            except FastVLMError as error:
                self._fail(task, error)
                continue
            pending.append(task)
            yield prompt

    def _fail(self, task: Task, error: FastVLMError) -> None:
        self._write(task, {"error": " ".join(str(error).split()), "launch": self._ledger.launch})

    def _write(self, task: Task, outcome: dict[str, object]) -> None:
        task.part.add({"key": task.item.key, **outcome})
        self.made += 1
        self._done[self._ledger.part_of(task.item)] += 1
        self._report()

    @property
    def done(self) -> int:
        return sum(self._done.values())

    def _report(self) -> None:
        self._progress(self.done, self._total)
