"""How the built-in model is made: drawn scenes, questions about them, a recipe, shipping."""

import fastvlm_mlx  # noqa: F401  - prefers OpenBLAS, before any module here loads MLX
