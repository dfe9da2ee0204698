"""`benchmarks/against_mlx_vlm.py` times towers that compute numbers."""

from __future__ import annotations

import peers
import pytest
from command import PYTHON, completed

FEATURES = """
import against_mlx_vlm as benchmark, mlx.core as mx, peers
config = peers.load("mlx_vlm.models.fastvlm.config")
tower = benchmark.randomized(peers.load("mlx_vlm.models.fastvlm.vision").VisionModel(config.VisionConfig()))
print(mx.isfinite(benchmark.features(tower, mx.random.uniform(shape=(1, 64, 64, 3)))).all().item())
"""


@pytest.mark.skipif(not peers.installed("mlx_vlm"), reason="pip install --no-deps mlx-vlm mlx-lm")
def test_features_of_their_random_tower_are_finite() -> None:
    ran = completed((*PYTHON, "-c", FEATURES), PYTHONPATH=str(peers.__file__).rpartition("/")[0])
    assert ran.out.strip() == "True", ran.err
