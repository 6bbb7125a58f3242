"""Weights of FID's Inception as pytorch-fid and torch-fidelity have them in their .pth files, or as safetensors.

Both have the names of the TensorFlow graph: "Mixed_5b.branch1x1.conv.weight". torchvision's Inception-v3 has the same
names, another training and 1000 classes. jax-fid has the same layers with Flax's names in a pickle, which is not read.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.interop import files, layers
from ddpm_jax.interop.features.folding import fold
from ddpm_jax.models.inception import NUM_CLASSES, Inception

EPS = 1e-3
KNOWN_BY = "Mixed_7c.branch_pool.conv.weight"
"""A name that only Inception-v3 has."""
JAX_FID = {"conv/kernel": "conv.weight", "kernel": "weight", "bn/scale": "bn.weight", "bn/bias": "bn.bias"} | {
    **{"bn/mean": "bn.running_mean", "bn/var": "bn.running_var", "bias": "bias"}
}
"""The ends of jax-fid's names, joined by slashes, and of pytorch-fid's."""


def read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file by pytorch-fid's names; of jax-fid, those of its pickle made into an .npz file.

    Raises:
      FileNotFoundError, ValueError: as files.read; a pickle, which could run any code, with the way to convert it.
    """
    if files.is_pickle(path):
        raise ValueError(
            f"{path.name} is a pickle, as jax-fid's weights are, and may run any code when it is read: where you trust "
            "it, `python -c \"import pickle, numpy, flax.traverse_util as t; numpy.savez('inception.npz', "
            f"**t.flatten_dict(pickle.load(open('{path}', 'rb')), sep='/'))\"` makes inception.npz of it, which is read"
        )
    return files.read_state_dict(path)


def of_jax_fid(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays by pytorch-fid's names and with its axes, where they have jax-fid's; others as they are."""
    found = {}
    for name, array in weights.items():
        end = next((end for end in JAX_FID if name.endswith("/" + end)), None)
        if end is None:
            found[name] = array
            continue
        theirs = name.removesuffix(end).replace("/", ".") + JAX_FID[end]
        found[theirs] = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
    return found


def inception_to_params(weights: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Parameters of Inception() from the arrays of a file of FID's weights.

    Raises:
      ValueError: they are those of torchvision's Inception; or lists every array missing, left over, or of another
        shape.
    """
    num_classes = weights["fc.bias"].shape[0] if "fc.bias" in weights and weights["fc.bias"].ndim else NUM_CLASSES
    if num_classes == 1000 or any(name.startswith("AuxLogits.") for name in weights):
        raise ValueError(
            "these are the weights of torchvision's Inception-v3 (1000 classes), which is another network than FID's "
            "(1008 classes): features of the two must not be compared; take pt_inception-2015-12-05-6726825d.pth"
        )
    wanted = layers.param_shapes(Inception(), jax.ShapeDtypeStruct((1, 75, 75, 3), jnp.float32))
    names = {path.rpartition("/")[0]: path.rpartition("/")[0].replace("/", ".") for path in wanted}
    norms = {theirs: theirs.removesuffix("conv") + "bn" for theirs in names.values() if theirs.endswith(".conv")}
    return layers.to_params(fold(weights, norms, EPS), names, wanted, frozenset())
