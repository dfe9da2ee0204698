"""The released models' true sizes, for those who have not downloaded them."""

from ..config import ModelConfig, TextConfig, VisionConfig

VARIANTS = {
    name: ModelConfig(VisionConfig(), text)
    for name, text in {
        "0.5b": TextConfig(896, 24, 14, 2, 4_864, 151_936, tied=True),
        "1.5b": TextConfig(1_536, 28, 12, 2, 8_960, 151_936, tied=True),
        "7b": TextConfig(3_584, 28, 28, 4, 18_944, 152_064, tied=False),
    }.items()
}
