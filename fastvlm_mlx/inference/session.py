"""A conversation that does no work twice.

>>> session = Session(load("0.5b"))
>>> session.generate("What is in the picture?", ["cat.jpg"]).text
>>> session.generate("And what colour is it?").text  # reads these words alone

What the model said stays as the tokens it said. So every question is a prompt that a fresh run could read
whole, `vlm.generate(session.prompt(text))`, with the same answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from ..errors import ConfigError, DataError, PromptError
from ..inputs.prompt import Picture, Prompt, Text, assemble, marked, positions, render, system_turn
from ..inputs.tiling import ImageOptions
from ..vlm import VLM, Shown
from ..weights import checkpoint
from . import generate, session_file
from .caches import Features, Prefix, position_keys
from .decoding import Event, Finished, Token
from .generate import Answer
from .sampling import Sampling
from .session_file import Saved, SavedTurn

_DEFAULT = ImageOptions()
_GREEDY = Sampling()
_END = "<|im_end|>\n"  # of a turn, before the next
_ANSWER_SHARE = 1 / 4  # of the context: the most that is kept free for an answer
_KEPT_SHARE = 3 / 4  # of the context: what is left once turns have to go, so that it lasts for some questions


@dataclass(frozen=True, slots=True, eq=False)
class Turn:
    question: str
    pictures: tuple[Picture, ...]
    ids: tuple[int, ...]  # as they were said
    text: str
    parts: Prompt  # all of it, as the model reads it


class Session:
    """One conversation with a model. Sessions of one model may share `features`.

    Where the context is full the oldest turns go first, but the system prompt and the turn that brought the
    newest picture stay. `context` makes it shorter than the model's.
    """

    def __init__(
        self,
        vlm: VLM,
        system: str | None = None,
        *,
        features: Features | None = None,
        context: int | None = None,
    ) -> None:
        if vlm.low_memory:
            raise ConfigError(
                "a session may be shown pictures at any time; load the model without low_memory"
            )
        most = vlm.config.text.context
        self.vlm = vlm
        self.features = Features() if features is None else features
        self.context = most if context is None else min(context, most)
        self.turns: tuple[Turn, ...] = ()  # those that the model still reads
        self.system = system
        self._end = Text(tuple(vlm.tokenizer.encode(_END)))
        self._prefix = Prefix(vlm.model.language.new_caches())
        self._answering = False

    @property
    def system(self) -> str | None:
        """None is the reference's sentence; an empty one leaves the system turn out."""
        return self._system

    @system.setter
    def system(self, system: str | None) -> None:
        rendered = system_turn(system)
        self._system_turn: Prompt = (Text(tuple(self.vlm.tokenizer.encode(rendered))),) if rendered else ()
        self._system = system

    @property
    def nbytes(self) -> int:
        """Of keys and values; the pictures are `features.nbytes`."""
        return self._prefix.nbytes

    def prompt(self, text: str | None = None, images: Sequence[Shown] = (), max_tokens: int = 512) -> Prompt:
        """All that would be read for a question; without one, the conversation so far."""
        if text is None:
            return self._join(self.turns)
        asked = self._question(*marked(text, [self.vlm.shown(source) for source in images]))
        return self._join(self._kept_turns(asked, max_tokens)) + asked

    def stream(
        self,
        text: str,
        images: Sequence[Shown] = (),
        *,
        max_tokens: int = 512,
        options: ImageOptions = _DEFAULT,
        sampling: Sampling = _GREEDY,
    ) -> Iterator[Event]:
        """Ask, and read the answer as it comes; takes what `VLM.prompt` and `VLM.stream` take.

        An answer that is not read to its end (close the iterator) is kept as far as it came. If nothing had
        been said, the question is forgotten too, as it is after an error.
        """
        if self._answering:
            raise PromptError("the session is still answering; read that answer to its end, or close it")
        text, pictures = marked(text, [self.vlm.shown(source, options) for source in images])
        asked = self._question(text, pictures)
        remembered = self._kept_turns(asked, max_tokens)
        events = generate.stream(
            self.vlm.model,
            self.vlm.tokenizer,
            self._join(remembered) + asked,
            stop_ids=self.vlm.config.eos_token_ids,
            context=self.context,
            max_tokens=max_tokens,
            sampling=sampling,
            prefix=self._prefix,
            features=self.features,
        )
        events = self.vlm.turns.each(events)
        ids: list[int] = []
        last: Finished | None = None
        self._answering = True
        try:
            for event in events:
                if isinstance(event, Finished):
                    last = event
                    break
                if isinstance(event, Token):
                    ids.append(event.id)
                yield event
        finally:
            self._answering = False
            if ids or last:
                self.turns = (*remembered, self._turn(text, pictures, ids))
        if last:
            yield last

    def generate(
        self,
        text: str,
        images: Sequence[Shown] = (),
        *,
        max_tokens: int = 512,
        options: ImageOptions = _DEFAULT,
        sampling: Sampling = _GREEDY,
    ) -> Answer:
        """The whole answer with its timings; takes what `stream` takes."""
        return generate.collect(
            self.stream(text, images, max_tokens=max_tokens, options=options, sampling=sampling)
        )

    def clear(self) -> None:
        """Begin again; the system prompt and the pictures' features stay."""
        self.turns = ()
        self._prefix = Prefix(self.vlm.model.language.new_caches())

    def fork(self) -> Session:
        """The same conversation once more, to go on differently; nothing is computed or read again."""
        other = Session(self.vlm, self.system, features=self.features, context=self.context)
        other.turns = self.turns
        with self.vlm.turns.mine():
            other._prefix = self._prefix.fork(len(self._prefix))
        return other

    def save(self, path: str | Path) -> None:
        """Write the conversation to a file, with what has been worked out for it."""
        with self.vlm.turns.mine():
            self._save(Path(path))

    def _save(self, path: Path) -> None:
        shown = {picture.key: picture for turn in self.turns for picture in turn.pictures}
        number = {key: n for n, key in enumerate(shown)}
        turns = tuple(
            SavedTurn(turn.question, tuple(number[p.key] for p in turn.pictures), turn.text, turn.ids)
            for turn in self.turns
        )
        encoded = self.features.subset(shown.values())
        worked_out = {f"features.{number[key]}": array for key, array in encoded.items()}
        known = self._prefix.common_length(position_keys(self.prompt()))
        if known:
            for layer, cache in enumerate(self._prefix.fork(known).caches):
                worked_out |= zip(self._widths(layer), cache.arrays, strict=True)
        told = Saved(
            checkpoint.fingerprint(self.vlm.model), self.system, turns, known, self.vlm.model.language.packing
        )
        session_file.write(path, told, list(shown.values()), worked_out)

    @classmethod
    def restore(
        cls, vlm: VLM, path: str | Path, *, features: Features | None = None, context: int | None = None
    ) -> Session:
        """Go on with a saved conversation. Another model than it was held with reads it again, and so does
        one that keeps keys and values in other bits."""
        with vlm.turns.mine():
            return cls._restored(vlm, Path(path), features, context)

    @classmethod
    def _restored(cls, vlm: VLM, path: Path, features: Features | None, context: int | None) -> Session:
        told, pictures, worked_out = session_file.read(path)
        session = cls(vlm, told.system, features=features, context=context)
        same = told.model == checkpoint.fingerprint(vlm.model)
        for turn in told.turns:
            shown = tuple(pictures[number] for number in turn.pictures)
            ids = turn.ids if same else vlm.tokenizer.encode(turn.text)
            if not all(0 <= id < vlm.tokenizer.size for id in ids):
                raise DataError(f"{path}: an answer holds tokens beyond the vocabulary; save it again")
            session.turns += (session._turn(turn.question, shown, ids),)
        if same:
            known = told.known if told.packing == vlm.model.language.packing else 0
            session._restore_caches(path, known, pictures, worked_out)
        return session

    def _restore_caches(
        self, path: Path, known: int, pictures: Sequence[Picture], worked_out: dict[str, mx.array]
    ) -> None:
        """Go on from what a file says has been worked out, if that fits."""
        text, read = self.vlm.config.text, position_keys(self.prompt())
        layers = range(text.layers if known else 0)
        held = {
            name: (2, 1, text.kv_heads, known, width)
            for n in layers
            for name, width in self._widths(n).items()
        }
        seen = {f"features.{n}": (picture.positions, text.hidden_size) for n, picture in enumerate(pictures)}
        for name, shape in (held | seen).items():
            found = worked_out.get(name)
            if (
                (found is None and name in held)
                or (found is not None and found.shape != shape)
                or known > len(read)
            ):
                raise DataError(f"{path}: {name} is missing or of another shape; save it again")
        for n, picture in enumerate(pictures):
            if (encoded := worked_out.get(f"features.{n}")) is not None:
                self.features.put([picture], encoded[None])
        caches = self.vlm.model.language.new_caches()
        for n in layers:
            caches[n].append(*(worked_out[name] for name in self._widths(n)))
        self._prefix = Prefix(caches, read[:known])

    def _widths(self, layer: int) -> dict[str, int]:
        """What a layer's keys and values are saved as, and how wide each array is."""
        dim, how = self.vlm.config.text.head_dim, self.vlm.model.language.packing
        parts = {"": dim}
        if how is not None:
            parts = {
                "": dim * how.bits // 32,
                ".scales": dim // how.group_size,
                ".biases": dim // how.group_size,
            }
        return {f"seen.{layer}{part}": width for part, width in parts.items()}

    def _question(self, text: str, pictures: Sequence[Picture]) -> Prompt:
        return assemble(render(text, len(pictures), ""), pictures, self.vlm.tokenizer.encode)

    def _turn(self, text: str, pictures: tuple[Picture, ...], ids: Sequence[int]) -> Turn:
        said = (Text(tuple(ids)),) if ids else ()
        parts = (*self._question(text, pictures), *said, self._end)
        return Turn(text, pictures, tuple(ids), self.vlm.tokenizer.decode(ids), parts)

    def _join(self, turns: Sequence[Turn]) -> Prompt:
        return (*self._system_turn, *(part for turn in turns for part in turn.parts))

    def _kept_turns(self, asked: Prompt, max_tokens: int) -> tuple[Turn, ...]:
        """The turns that stay when something is asked."""
        needed = (
            positions(self._system_turn)
            + positions(asked)
            + min(max_tokens, int(self.context * _ANSWER_SHARE))
        )
        taken = {turn: positions(turn.parts) for turn in self.turns}
        if needed + sum(taken.values()) <= self.context:
            return self.turns
        newest = next((turn for turn in reversed(self.turns) if turn.pictures), None)
        if any(isinstance(part, Picture) for part in asked):
            newest = None
        for turn in self.turns:
            if turn is not newest and needed + sum(taken.values()) > self.context * _KEPT_SHARE:
                del taken[turn]
        return tuple(taken)
