"""Picture features as numpy arrays, without the decoder: python examples/features.py MODEL PICTURE OUT.npz"""

import sys

import mlx.core as mx
import numpy as np

import fastvlm_mlx
from fastvlm_mlx.inputs.image import preprocess

model, picture, out = sys.argv[1:]
vlm = fastvlm_mlx.load(model, dtype="float32")
pixels = mx.array(preprocess(picture, vlm.config.image.size))[None]
tower, projected = vlm.vision(pixels), vlm.encode_image(pixels)
np.savez(out, tower=np.array(tower), projected=np.array(projected))
print(f"tower {tower.shape}, projected {projected.shape} -> {out}")
