"""A loaded model with its tokenizer and picture settings: what a program holds on to."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from .config import GROUP_SIZES, IMAGE_MARK, STRIDE, ImageConfig, ModelConfig, Quantization
from .errors import ConfigError, ImageError, PromptError
from .inference import generate, thread_exit
from .inference.decoding import Drafter, Event
from .inference.generate import Answer
from .inference.sampling import Sampling
from .inference.speculative import CombinedDrafter, ModelDrafter, NgramDrafter
from .inputs import image
from .inputs.prompt import Clip, Picture, Prompt, assemble, marked, positions, render
from .inputs.tiling import ImageOptions
from .inputs.tokenizer import Tokenizer
from .inputs.video import Advance, Video, is_video, open_video
from .models import coreml_tower, lora
from .models.fastvlm import FastVLM
from .models.kv_cache import packing
from .weights import checkpoint, hub
from .weights.checkpoint import Loaded

Pixels = mx.array | npt.NDArray[Any]  # floats; of numpy's arrays, uint8 is read as a picture file would be
Image = image.Source | Pixels | Picture | tuple[Picture, ...]  # the last is one picture in pieces
Shown = Image | Video | Clip
T = TypeVar("T")
_DEFAULT = ImageOptions()
_GREEDY = Sampling()
_ANSWER_SHARE = 1 / 8  # of the context: kept for an answer when we say how many frames fit


def load(
    name: str | Path,
    dtype: str | mx.Dtype | None = None,
    *,
    revision: str | None = None,
    adapter: str | Path | None = None,
    vision_package: str | Path | None = None,
    group: mx.distributed.Group | None = None,
    low_memory: bool = False,
    kv_bits: int | None = None,
    kv_group_size: int = 64,
) -> VLM:
    """Load a model by path, short name (`0.5b`) or hub id, whatever its layout.

    `dtype` None computes in the stored type on a GPU and in float32 on the CPU. `adapter` is a directory that
    fine-tuning wrote. `vision_package`, on a Mac, is a Core ML package (`export --target coreml`) to run the
    vision tower in. `group`, of several processes (`mx.distributed.init()`), divides the language model
    between them: all load it so and ask the same. `low_memory` never holds all of the model: it answers one
    prompt that may have pictures, and frees the vision tower before it loads the language model. `kv_bits`, 4
    or 8, packs keys and values, in groups of `kv_group_size` or as many as divide a head."""
    if kv_bits is not None:
        packing(kv_bits, kv_group_size, max(GROUP_SIZES))  # says what is wrong before a model is loaded
    if isinstance(dtype, str):
        if dtype not in checkpoint.DTYPES:
            raise ConfigError(f"no dtype {dtype!r}; choose one of {', '.join(checkpoint.DTYPES)}")
        dtype = checkpoint.DTYPES[dtype]
    widened = None if adapter is None else lora.read(Path(adapter).expanduser())
    if vision_package is not None:
        coreml_tower.require()
    if group is not None and group.size() == 1:
        group = None
    if group is not None and low_memory:
        raise ConfigError("low memory is of one process; leave it out, or the group")
    turns = Turns()
    directory = hub.resolve(name, revision)
    with turns.mine():
        loaded = checkpoint.load(directory, dtype, widened, group, low_memory=low_memory)
    if kv_bits is not None:
        head_dim = loaded.config.text.head_dim
        loaded.model.language.packing = packing(kv_bits, kv_group_size, head_dim)
    if vision_package is not None:
        tower = coreml_tower.load(Path(vision_package).expanduser(), loaded.dtype)
        tower.check(loaded.config.vision)
        loaded.model.vision = tower  # type: ignore[assignment]  # called as the other is
        of_its_size = dataclasses.replace(
            loaded.config, image=ImageConfig(tower.size, loaded.config.image.mode)
        )
        loaded = dataclasses.replace(loaded, config=of_its_size)
    return VLM(loaded, turns)


class Turns:
    """Calls from several threads take turns with one model.

    MLX ties an operation to a stream, and a thread's own streams to that thread. All work on a model goes to
    one stream that any thread may use while it holds the lock, so arrays can outlive the thread that made
    them."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._stream = mx.new_thread_unsafe_stream(mx.default_device())

    @contextmanager
    def mine(self) -> Iterator[None]:
        thread_exit.note()
        with self._lock, mx.stream(self._stream):
            yield

    def each(self, events: Iterator[T]) -> Iterator[T]:
        """The events, each computed in a turn of its own, so that an unfinished answer blocks nobody."""
        try:
            while True:
                with self.mine():
                    try:
                        event = next(events)
                    except StopIteration:
                        return
                yield event
        finally:
            with self.mine():
                events.close()  # type: ignore[attr-defined]  # all of them are generators


class VLM:
    """A model to ask. Threads may share it: calls take turns.

    >>> vlm = load("0.5b")
    >>> prompt = vlm.prompt("What is in the picture?", images=["cat.jpg"])
    >>> vlm.generate(prompt).text
    """

    def __init__(self, loaded: Loaded, turns: Turns | None = None):
        self.model: FastVLM = loaded.model
        self.config: ModelConfig = loaded.config
        self.tokenizer: Tokenizer = loaded.tokenizer
        self.turns = Turns() if turns is None else turns
        self.layout: str = loaded.layout
        self.dtype: mx.Dtype = loaded.dtype
        self.quantization: Mapping[str, Quantization] = loaded.quantization
        self.low_memory: bool = loaded.low_memory

    def vision(self, pixels: Pixels) -> mx.array:
        """(B, H, W, 3) in [0, 1] -> (B, H/64, W/64, features)"""
        return self._evaluated(lambda: self.model.vision(_check_pixels(pixels)))

    def encode_image(self, pixels: Pixels) -> mx.array:
        """(B, H, W, 3) in [0, 1] -> (B, tokens, d), as the language model sees them"""
        return self._evaluated(lambda: self.model.encode_image(_check_pixels(pixels)))

    def _evaluated(self, compute: Callable[[], mx.array]) -> mx.array:
        """An array that any thread may use."""
        with self.turns.mine():
            array = compute()
            mx.eval(array)
        return array

    def prompt(
        self,
        text: str,
        images: Sequence[Shown] = (),
        system: str | None = None,
        *,
        options: ImageOptions = _DEFAULT,
    ) -> Prompt:
        """A question with its pictures. `<image>` in the text places each one; without it they come first.

        A picture is a path, encoded bytes, a PIL image, a uint8 array, or floats (H, W, 3) in [0, 1]
        with sides that are multiples of 64, which are taken as they are; or a `Picture`, such as another
        prompt holds, or what `pictures` gives. A `Video`, its path, or what `clip` gives stands for its
        frames, each on a line after its time. `options` say how files and frames become pixels.
        """
        rendered = render(text, len(images), system)  # refuses a wrong text before pictures are read
        shown = [self.shown(source, options) for source in images]
        prompt = assemble(*marked(rendered, shown), self.tokenizer.encode)
        self._check_room(prompt, [one for one in shown if isinstance(one, Clip)])
        return prompt

    def shown(self, source: Shown, options: ImageOptions = _DEFAULT) -> Clip | tuple[Picture, ...]:
        """What a prompt holds of a picture or video: a video's frames, or a picture's pieces."""
        if is_video(source):
            source = Video(source)
        if isinstance(source, Video):
            source = self.clip(source, options)
        return source if isinstance(source, Clip) else self.pictures(source, options)

    def _check_room(self, prompt: Prompt, clips: Sequence[Clip]) -> None:
        """Of prompts with videos: say how many frames the context has room for."""
        asked, context = positions(prompt), self.config.text.context
        if not clips or asked <= context:
            return
        frames = [pieces for clip in clips for pieces in clip.frames]
        stamped = sum(len(self.tokenizer.encode(clip.marks.replace(IMAGE_MARK, ""))) for clip in clips)
        taken = stamped + sum(map(positions, frames))
        room = context * (1 - _ANSWER_SHARE) - (asked - taken)
        fit = max(0, int(room / (taken / len(frames)) / len(clips)))
        each = " of each video" if len(clips) > 1 else ""
        raise PromptError(
            f"the frames of a video take {taken / len(frames):.0f} positions each and the model reads "
            f"{context} in all; {fit} frames{each} fit with a question and an answer: choose "
            f"{f'--max-frames {fit} or ' if fit else ''}a smaller --image-size"
        )

    def clip(
        self,
        video: Video,
        options: ImageOptions = _DEFAULT,
        *,
        progress: Advance = lambda what, done, total: None,
    ) -> Clip:
        """A video's frames ready to be put into prompts; each is read as a picture is.

        No more are read than the context could hold, and one: `prompt` then says how many fit.
        """
        options = self._filled(options)
        times: list[float] = []
        frames: list[tuple[Picture, ...]] = []
        with open_video(video, progress) as reel:
            most = self.config.text.context // options.positions(*reel.sides) + 1
            for frame in reel.frames(reel.times(most)):
                times.append(frame.time_s)
                frames.append(_to_pictures(frame.picture, options))
            return Clip(tuple(times), tuple(frames), reel.damaged)

    def picture(self, source: Image, options: ImageOptions = _DEFAULT) -> Picture:
        """A picture ready to be put into prompts, read as `prompt` reads it."""
        parts = self.pictures(source, options)
        if len(parts) != 1:
            raise ConfigError(
                f"{len(parts)} pieces are no single picture; `VLM.pictures` gives and `VLM.prompt` takes them"
            )
        return parts[0]

    def pictures(self, source: Image, options: ImageOptions = _DEFAULT) -> tuple[Picture, ...]:
        """The pieces of one picture in any mode: with tiles, the overview and every tile."""
        parts = _to_pictures(source, self._filled(options))
        context = self.config.text.context
        if parts is not source and len(parts) > 1 and (asked := positions(parts)) > context:
            raise PromptError(
                f"{len(parts) - 1} tiles and their overview take {asked} positions and the model reads "
                f"{context}; choose a smaller --grid, fewer --max-tiles or a smaller --image-size"
            )
        return parts

    def _filled(self, options: ImageOptions) -> ImageOptions:
        return options.filled(self.config.image.size, self.config.image.mode)

    def logits(self, prompt: Prompt) -> mx.array:
        """(positions, vocabulary), padded rows of the vocabulary included"""

        def compute() -> mx.array:
            rows = self.model.embed(prompt)
            hidden = self.model.language(rows, self.model.language.new_caches())
            return self.model.language.logits(hidden)[0]

        return self._evaluated(compute)

    def stream(
        self,
        prompt: Prompt | str,
        *,
        max_tokens: int = 512,
        draft: VLM | None = None,
        repetitions: bool = False,
        sampling: Sampling = _GREEDY,
    ) -> Iterator[Event]:
        """Events as they happen: `Prefilled`, a `Token` each, `Finished`.

        A greedy answer can be guessed, and the guesses checked several tokens at
        a time, without changing it: by a smaller model of the same tokenizer, `draft`, or from what the
        prompt and the answer have said before, `repetitions`.
        """
        asked = self.prompt(prompt) if isinstance(prompt, str) else prompt
        events = generate.stream(
            self.model,
            self.tokenizer,
            asked,
            drafter=self._drafter(asked, draft, repetitions),
            stop_ids=self.config.eos_token_ids,
            context=self.config.text.context,
            max_tokens=max_tokens,
            sampling=sampling,
            low_memory=self.low_memory,
        )
        return self.turns.each(events)

    def _drafter(self, prompt: Prompt, draft: VLM | None, repetitions: bool) -> Drafter | None:
        repeated = NgramDrafter(prompt) if repetitions else None
        if draft is None:
            return repeated
        if self.low_memory:
            raise ConfigError("a draft model is one more in memory; leave it out, or low_memory")
        if self.model.group is not None:
            raise ConfigError("a model divided between processes takes no draft model; leave it out")
        if draft.tokenizer.size != self.tokenizer.size:
            raise ConfigError(
                f"the draft model has {draft.tokenizer.size} tokens and this one {self.tokenizer.size}; "
                "take a smaller model of the same family"
            )
        drafted = ModelDrafter(draft.model, prompt, self.tokenizer.size, self.config.eos_token_ids)
        return drafted if repeated is None else CombinedDrafter(repeated, drafted)

    def generate(
        self,
        prompt: Prompt | str,
        *,
        max_tokens: int = 512,
        draft: VLM | None = None,
        repetitions: bool = False,
        sampling: Sampling = _GREEDY,
    ) -> Answer:
        """The whole answer with its timings; takes what `stream` takes."""
        return generate.collect(
            self.stream(
                prompt, max_tokens=max_tokens, draft=draft, repetitions=repetitions, sampling=sampling
            )
        )

    def answers(
        self,
        prompts: Iterable[Prompt | str],
        *,
        batch: int = 16,
        max_tokens: int = 512,
        sampling: Sampling = _GREEDY,
    ) -> Iterator[Answer]:
        """An answer to each prompt, in order; `batch` prompts are held and answered at a time.

        Each is what `generate` would answer, but for the rounding of sums, which depends on how many go
        together. A `Picture` in several of the prompts held is encoded once, and prompts of equal length
        are read side by side: put such prompts next to each other.
        """
        if self.low_memory:
            raise ConfigError(
                "with low_memory one prompt is answered, by `generate`; load the model without it"
            )
        if batch < 1:
            raise ConfigError(f"batch is {batch}; answer at least 1 prompt at a time")
        coming = iter(prompts)
        while held := list(islice(coming, batch)):
            with self.turns.mine():
                answers = generate.answer_batch(
                    self.model,
                    self.tokenizer,
                    [self.prompt(prompt) if isinstance(prompt, str) else prompt for prompt in held],
                    stop_ids=self.config.eos_token_ids,
                    context=self.config.text.context,
                    max_tokens=max_tokens,
                    sampling=sampling,
                )
            yield from answers


def _to_pictures(source: Image, options: ImageOptions) -> tuple[Picture, ...]:
    if isinstance(source, Picture):
        return (source,)
    if isinstance(source, tuple):
        if not source or not all(isinstance(part, Picture) for part in source):
            raise ImageError("a tuple is a picture in pieces; give what `VLM.pictures` returns")
        return source
    if isinstance(source, mx.array) and source.dtype == mx.uint8:
        source = np.array(source)
    if isinstance(source, mx.array) or (isinstance(source, np.ndarray) and source.dtype.kind == "f"):
        pixels = _check_pixels(source)
        if pixels.shape[0] != 1:
            raise ImageError(f"{pixels.shape[0]} pictures in one array; give each one by itself")
        return (Picture(pixels),)
    return tuple(Picture(_check_pixels(piece)) for piece in image.preprocess_all(source, options))


def _check_pixels(given: Pixels) -> mx.array:
    """Floats (H, W, 3) or (B, H, W, 3), sides multiples of 64, as a batch that any thread may use."""
    pixels = mx.array(given[None] if given.ndim == 3 else given)
    mx.eval(pixels)
    if pixels.ndim != 4 or pixels.shape[-1] != 3 or not mx.issubdtype(pixels.dtype, mx.floating):
        raise ImageError(
            f"an array of shape {tuple(pixels.shape)} and type {pixels.dtype} is no picture; "
            "give floats (H, W, 3) in [0, 1], or uint8 to have it read as a picture file would be"
        )
    height, width = pixels.shape[1:3]
    if height % STRIDE or width % STRIDE or not height * width:
        raise ImageError(f"pixels are {height}×{width}; both sides must be multiples of {STRIDE}")
    return pixels
