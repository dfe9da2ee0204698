"""How far our float32 is from the reference's goldens, and the features of both from its float64.

Largest absolute error over the largest absolute value; the reduced model of tests/golden, the limits are
tests/test_parity.py's.
"""

from __future__ import annotations

import fastvlm_mlx  # isort: skip  - prefers OpenBLAS before mlx loads
import mlx.core as mx
import numpy as np
from safetensors.numpy import load_file
from synthetic import GOLDEN

CHECKPOINTS = ("apple-fused", "apple-train", "hf-timm-unfused", "mlx-vlm-f32")
ASKED = {
    "one.A": ("Describe the image.", "A"),
    "one.B": ("Describe the image.", "B"),
    "middle.A": ("Look at this: <image> now count the dogs.", "A"),
    "two.AC": ("What is the difference, and which is better?", "AC"),
    "text": ("What are these? Répondez, 请回答 3+4=7!", ""),
}


def relative(found: object, expected: np.ndarray) -> float:
    difference = np.abs(np.asarray(found, np.float64) - expected)
    return float(difference.max() / np.abs(expected).max())


def logits(vlm: fastvlm_mlx.VLM, text: str, pictures: list[mx.array]) -> mx.array:
    return vlm.logits(vlm.prompt(text, pictures))[:, :512]  # timm's layout pads the vocabulary further


def main() -> None:
    gold = load_file(GOLDEN / "numbers" / "vision.safetensors")
    gold |= load_file(GOLDEN / "numbers" / "untied.safetensors")
    pixels = {name: mx.array(gold[f"pixels.{name}"].transpose(0, 2, 3, 1)) for name in "ABC"}
    print(f"device: {mx.default_device()}, MLX {mx.__version__}\n")
    print("| checkpoint | features | projector | logits | ours from float64 | reference from float64 |")
    print("|---|---|---|---|---|---|")
    for name in CHECKPOINTS:
        vlm = fastvlm_mlx.load(GOLDEN / "checkpoints" / name / "untied", dtype="float32")
        features = {p: vlm.vision(x).flatten(1, 2) for p, x in pixels.items()}
        columns = [
            max(relative(features[p], gold[f"{p}.features"]) for p in "ABC"),
            max(relative(vlm.encode_image(pixels[p]), gold[f"{p}.projector"]) for p in "ABC"),
            max(
                relative(logits(vlm, text, [pixels[p] for p in names]), gold[f"{run}.logits"][0])
                for run, (text, names) in ASKED.items()
            ),
            max(relative(features[p], gold[f"{p}.features.f64"]) for p in "ABC"),
            max(relative(gold[f"{p}.features"], gold[f"{p}.features.f64"]) for p in "ABC"),
        ]
        print(f"| {name} | " + " | ".join(f"{value:.1e}" for value in columns) + " |")


if __name__ == "__main__":
    main()
