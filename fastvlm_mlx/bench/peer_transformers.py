"""transformers' FastVLM in PyTorch with a model's own weights: its modules, preprocessing and `generate`."""

from __future__ import annotations

import importlib
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from types import ModuleType
from typing import Any

import mlx.core as mx
import numpy as np
from PIL import Image

from ..config import ModelConfig
from ..convert.export.steps import source_of
from ..convert.read.tensor_names import HF_TIMM
from ..convert.verify import LAST, Cases, Outputs
from ..errors import CheckpointError, ConfigError
from ..inputs.prompt import Picture, Prompt, Text
from ..inputs.tokenizer import Tokenizer
from ..terminal import progress
from ..vlm import VLM
from ..weights import checkpoint
from ..weights.checkpoint import CONFIG, write_shards
from .measure import QUESTION, Case, Run, picture
from .peer import ANSWER, Peer, versions

NAME = "transformers"
PACKAGES = ("torch", "transformers", "timm")
INSTALL = "pip install torch transformers timm"
_COUNTER = "num_batches_tracked"  # of training; not among the weights


def load(directory: Path, ours: VLM) -> Peer:
    """The same weights, written as transformers reads them and read by it."""
    mark = _mark(ours.config, ours.tokenizer)
    model = _read(directory, ours.config, mark, ours.dtype)
    torch = _module("torch")
    on_mac = mx.default_device() == mx.Device(mx.gpu) and torch.backends.mps.is_available()
    device = "mps" if on_mac else "cpu"
    threads = "" if on_mac else f", threads: {torch.get_num_threads()}"
    theirs = PyTorch(ours, model.to(device).eval(), device, mark)
    return Peer(
        NAME,
        f"transformers with its own preprocessing and generate, PyTorch on the {device}{threads}",
        theirs,
        theirs.answer,
        versions=versions(PACKAGES),
        image_mode="crop",  # what its processor does to a picture that is not square
    )


def outputs(directory: Path, cases: Cases) -> Outputs:
    """What `convert --verify-against transformers` compares, in float32 on the CPU."""
    torch = _module("torch")
    _, config, _, _ = checkpoint.read(directory)
    mark = _mark(config, Tokenizer.load(directory))
    model = _read(directory, config, mark, mx.float32).eval()
    seen: dict[Picture, np.ndarray] = {}
    logits = []
    with torch.inference_mode():
        pixels = {
            picture: torch.from_numpy(np.array(picture.pixels.transpose(0, 3, 1, 2)))
            for picture in cases.pictures
        }
        for picture, shown in pixels.items():
            features = model.model.vision_tower(shown).last_hidden_state  # (1, C, h, w)
            seen[picture] = features.permute(0, 2, 3, 1).numpy()
        for prompt in cases.prompts:
            ids = torch.tensor([_marked(prompt, mark)])
            shown = [pixels[part] for part in prompt if isinstance(part, Picture)]
            found = model(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                pixel_values=torch.cat(shown) if shown else None,
            )
            logits.append(found.logits[0, -LAST:, : cases.vocabulary].numpy())
    return Outputs([*seen.values()], logits)


# --- the same weights ---


def _read(directory: Path, config: ModelConfig, mark: int, dtype: mx.Dtype) -> Any:
    torch, quiet = _module("torch"), _module("transformers.utils.logging")
    quiet.set_verbosity_error()
    quiet.disable_progress_bar()
    reader = _of_transformers("FastVlmForConditionalGeneration")
    with tempfile.TemporaryDirectory() as folder:
        write(directory, Path(folder), config, mark, dtype)
        model, told = reader.from_pretrained(
            folder,
            dtype=getattr(torch, str(dtype).rpartition(".")[2]),
            local_files_only=True,
            output_loading_info=True,
        )
    lost = [name for name in told["missing_keys"] if not name.endswith(_COUNTER)]
    if wrong := sorted([*lost, *told["unexpected_keys"], *map(str, told["mismatched_keys"])]):
        raise CheckpointError(
            f"{NAME} reads {len(wrong)} tensor(s) of the model otherwise, {wrong[0]!r} the first; "
            f"compare another model, or run {INSTALL} -U"
        )
    return model


def write(directory: Path, folder: Path, config: ModelConfig, mark: int, dtype: mx.Dtype) -> None:
    """The model as transformers stores it, branches fused as timm's own reparameterization leaves them."""
    with mx.stream(mx.cpu):  # where float64 is
        found = source_of(directory, Tokenizer.load(directory), NAME).released
        if found.packed:
            raise ConfigError(
                f"{NAME} computes in floats, and {directory} is quantized; give the model it was made from"
            )
        stored = {
            HF_TIMM.stored_name(name): _channels_first(name, array).astype(dtype)
            for name, array in found.weights.items()
        }
    (folder / CONFIG).write_text(json.dumps(_config(config, mark)), encoding="utf-8")
    with progress.bar(f"writing for {NAME}") as advance:
        write_shards(folder, stored, advance)


def _channels_first(name: str, array: mx.array) -> mx.array:
    if name.rpartition(".")[2].startswith("layer_scale"):
        return array.reshape(-1, 1, 1)
    return array.transpose(0, 3, 1, 2) if array.ndim == 4 else array


def _config(config: ModelConfig, mark: int) -> dict[str, Any]:
    vision, text = config.vision, config.text
    return {
        "architectures": ["FastVlmForConditionalGeneration"],
        "model_type": "fast_vlm",
        "image_token_index": mark,
        "tie_word_embeddings": text.tied,
        "text_config": {
            "model_type": "qwen2",
            "hidden_size": text.hidden_size,
            "intermediate_size": text.intermediate_size,
            "num_hidden_layers": text.layers,
            "num_attention_heads": text.heads,
            "num_key_value_heads": text.kv_heads,
            "vocab_size": text.vocab_size,
            "max_position_embeddings": text.context,
            "rms_norm_eps": text.norm_eps,
            "rope_theta": text.rope_theta,
            "rope_parameters": {"rope_type": "default", "rope_theta": text.rope_theta},
            "tie_word_embeddings": text.tied,
        },
        "vision_config": {
            "model_type": "timm_wrapper",
            "architecture": "fastvit_mci3",
            "do_pooling": True,
            "global_pool": "avg",
            "hidden_size": vision.feature_dim,
            "model_args": {
                "layers": list(vision.layers),
                "embed_dims": list(vision.dims),
                "mlp_ratios": [vision.mlp_ratio] * len(vision.dims),
                "inference_mode": True,
            },
        },
    }


def _mark(config: ModelConfig, tokenizer: Tokenizer) -> int:
    """The id that it replaces by a picture's row: a row of the embedding that no text has."""
    mark = tokenizer.id_of("<image>")
    mark = tokenizer.size if mark is None else mark
    if mark >= config.text.vocab_size:
        raise ConfigError(
            f"{NAME} marks pictures by a token of the vocabulary, and all "
            f"{config.text.vocab_size} of this model's are taken; compare another model"
        )
    return mark


def _marked(prompt: Prompt, mark: int) -> list[int]:
    ids: list[int] = []
    for part in prompt:
        ids += part.ids if isinstance(part, Text) else [mark] * part.positions
    return ids


# --- its own loop ---


class PyTorch:
    def __init__(self, ours: VLM, model: Any, device: str, mark: int):
        self._ours, self._model, self._device, self._mark = ours, model, device, mark
        self._torch = _module("torch")
        self._processors: dict[int, Any] = {}
        self._at: dict[str, float] = {}
        model.model.vision_tower.register_forward_pre_hook(self._stamp("begun"))
        model.model.vision_tower.register_forward_hook(self._stamp("seen"))
        model.model.multi_modal_projector.register_forward_hook(self._stamp("projected"))

    def measure(self, encoded: bytes, case: Case, tokens: int) -> Run:
        began = perf_counter()
        opened = Image.open(io.BytesIO(encoded)).convert("RGB")
        read = perf_counter()
        pixels = self._preprocessed(opened, case.size)
        prepared = perf_counter()
        blank = Picture(mx.broadcast_to(mx.zeros(()), (1, case.size, case.size, 3)))  # for its positions
        prompt = self._ours.prompt(QUESTION, [blank])
        ids = self._ids(prompt)
        asked = perf_counter()
        said = self._generate(ids, pixels, tokens)
        first, last = said.at[0], said.at[-1]
        vision_s, projector_s = self._at["seen"] - self._at["begun"], self._at["projected"] - self._at["seen"]
        return Run(
            read_s=read - began,
            preprocess_s=prepared - read,
            prompt_s=asked - prepared,
            vision_s=vision_s,
            projector_s=projector_s,
            prefill_s=first - asked - vision_s - projector_s,  # and what `generate` does around it
            first_token_s=0.0,
            ttft_s=first - began,
            decode_s=last - first,
            image_tokens=blank.positions,
            text_tokens=sum(part.positions for part in prompt) - blank.positions,
            tokens=len(said.ids),
            peak_bytes=0,  # PyTorch does not tell it on a CPU
        )

    def answer(self, prompt: Prompt) -> list[int]:
        """About `picture()`, prepared by its own processor in the size that the prompt has it in."""
        [shown] = [part for part in prompt if isinstance(part, Picture)]
        opened = Image.open(io.BytesIO(picture())).convert("RGB")
        pixels = self._preprocessed(opened, shown.pixels.shape[1])
        beyond = list(range(self._ours.tokenizer.size, self._ours.config.text.vocab_size))
        # Rows without a token cannot be said here, and may not be there.
        return self._generate(self._ids(prompt), pixels, ANSWER, suppress_tokens=beyond or None).ids

    def _preprocessed(self, opened: Image.Image, size: int) -> Any:
        if size not in self._processors:
            self._processors[size] = _of_transformers("CLIPImageProcessor")(
                size={"shortest_edge": size},
                crop_size={"height": size, "width": size},
                image_mean=[0.0] * 3,
                image_std=[1.0] * 3,
            )
        made = self._processors[size](images=opened, return_tensors="pt")["pixel_values"]
        return made.to(self._device, self._model.dtype)

    def _ids(self, prompt: Prompt) -> Any:
        return self._torch.tensor([_marked(prompt, self._mark)], device=self._device)

    def _generate(self, ids: Any, pixels: Any, tokens: int, **options: Any) -> _Said:
        said = _Said()
        with self._torch.inference_mode():
            self._model.generate(
                input_ids=ids,
                attention_mask=self._torch.ones_like(ids),
                pixel_values=pixels,
                max_new_tokens=tokens,
                do_sample=False,
                streamer=said,
                **options,
            )
        return said

    def _stamp(self, name: str) -> Callable[..., None]:
        def stamp(*_: object) -> None:
            if self._device == "mps":
                self._torch.mps.synchronize()
            self._at[name] = perf_counter()

        return stamp


class _Said:
    """What `generate` streams to: the prompt first, then a token at a time."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.at: list[float] = []
        self._asked = False

    def put(self, value: Any) -> None:
        if not self._asked:
            self._asked = True
            return
        self.ids.extend(value.flatten().tolist())
        self.at.append(perf_counter())

    def end(self) -> None:
        """It has no more to say."""


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError, OSError) as error:  # builds that do not go together raise any of these
        raise _unusable(name, error) from None


def _of_transformers(name: str) -> Any:
    """Imported when it is first looked up, so that is where what it needs turns out to be missing."""
    try:
        return getattr(_module("transformers"), name)
    except (ImportError, AttributeError, RuntimeError, OSError) as error:
        raise _unusable(f"transformers.{name}", error.__cause__ or error) from None


def _unusable(name: str, error: BaseException) -> ConfigError:
    return ConfigError(f"{NAME}: {name} cannot be imported ({error}); run {INSTALL} -U")
