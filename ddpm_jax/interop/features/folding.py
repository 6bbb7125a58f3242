"""Batch normalization with fixed statistics is a scale and a shift, folded into the convolution before it.

    scale = weight / sqrt(running_var + eps)      kernel' = scale kernel      bias' = bias - scale running_mean

In float64, rounded once. Source: Ioffe and Szegedy 2015 (arXiv:1502.03167), algorithm 2, step 11.
"""

from collections.abc import Mapping

import numpy as np

PARTS = ("weight", "bias", "running_mean", "running_var")
COUNT = "num_batches_tracked"


def fold(weights: Mapping[str, np.ndarray], norms: Mapping[str, str], eps: float) -> dict[str, np.ndarray]:
    """The weights with the convolutions' biases and without the norms.

    Args:
      weights: arrays by name, convolutions [O, I, H, W].
      norms: convolution to the norm after it: "Conv2d_1a_3x3.conv": "Conv2d_1a_3x3.bn".
      eps: of the norms.

    Raises:
      ValueError: lists all that is missing, or of another shape than the convolution's outputs.
    """
    wanted = [f"{conv}.weight" for conv in norms] + [f"{norm}.{part}" for norm in norms.values() for part in PARTS]
    problems = [f"missing {name}" for name in wanted if name not in weights]
    for conv, norm in norms.items() if not problems else ():
        width = weights[f"{conv}.weight"].shape[:1]
        names = [f"{norm}.{part}" for part in PARTS]
        problems += [
            f"{name} is {list(weights[name].shape)}, expected {list(width)}"
            for name in names
            if weights[name].shape != width
        ]
    if problems:
        raise ValueError("weights do not fit the model: " + "; ".join(problems))
    folded = {name: array for name, array in weights.items() if not name.endswith(f".{COUNT}")}
    for conv, norm in norms.items():
        scale, shift, mean, variance = (folded.pop(f"{norm}.{part}").astype(np.float64) for part in PARTS)
        scale = scale / np.sqrt(variance + eps)
        kernel = folded[f"{conv}.weight"] * scale[:, None, None, None]
        folded[f"{conv}.weight"] = kernel.astype(np.float32)
        folded[f"{conv}.bias"] = (shift - scale * mean).astype(np.float32)
    return folded
