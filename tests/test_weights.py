"""With Apple's weights at hand: `pytest -m weights` downloads the transformers copies and one COCO picture.

The numbers were published with those copies (bfloat16 on CUDA, centre crop, 280 positions).
"""

import mlx.core as mx
import numpy as np
import pytest

import fastvlm_mlx
from fastvlm_mlx.inputs.image import open_source
from fastvlm_mlx.inputs.prompt import positions

PICTURE = "http://images.cocodataset.org/val2017/000000039769.jpg"
LAST_LOGITS = {
    "0.5B": (4.1250, 9.6875, 11.1875),
    "1.5B": (3.3750, 11.5000, 11.8125),
    "7B": (3.8281, 9.0625, 7.9062),
}


@pytest.mark.weights
@pytest.mark.parametrize("size", LAST_LOGITS)
def test_last_logits_are_the_published_ones(size: str) -> None:
    vlm = fastvlm_mlx.load(f"KamilaMila/FastVLM-{size}")
    picture = open_source(PICTURE)
    prompt = vlm.prompt(
        "What are these?", [picture], options=fastvlm_mlx.ImageOptions(mode="crop", reference=True)
    )
    assert positions(prompt) == 280
    found = vlm.logits(prompt)[-1, :3].astype(mx.float32)
    np.testing.assert_allclose(np.array(found), LAST_LOGITS[size], atol=0.25)  # bfloat16 steps there: 0.0625
