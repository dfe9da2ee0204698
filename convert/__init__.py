"""Checkpoints in, checkpoints out: layouts, fusing, quantization, repair."""

if __name__ != "fastvlm_mlx.convert":
    raise ImportError(
        f"this folder is the package 'fastvlm_mlx.convert', not {__name__!r}: import it by that name"
    )
