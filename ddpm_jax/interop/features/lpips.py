"""Weights of LPIPS: a backbone by torchvision's names or by those of the package lpips, and the heads of that package.

ours              torchvision        lpips, taming-transformers
net/conv_5        features.5         net.slice2.5
net/fire_3/squeeze features.3.squeeze net.slice2.3.squeeze
head_0 [C]                           lin0.model.1.weight [1, C, 1, 1]
"""

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.interop import files, layers
from ddpm_jax.models.lpips import LPIPS

HEAD = re.compile(r"lins?\.?(\d+)\.model\.[01]\.weight")
IGNORED = re.compile(r"(classifier|scaling_layer)\..*|.*\.num_batches_tracked")
"""Layers of torchvision's networks behind their features, and two constants of the package."""


def find_heads(backbone: str) -> Path:
    """The heads in the installed package lpips, which is not imported: it needs PyTorch.

    Raises:
      ImportError: the package is not installed.
    """
    spec = importlib.util.find_spec("lpips")
    if spec is None or spec.origin is None:
        raise ImportError("the heads of LPIPS are in a package: pip install --no-deps lpips")
    return Path(spec.origin).parent / "weights" / "v0.1" / f"{backbone}.pth"


def read_lpips(backbone: str, weights: Path, heads: Path | None = None) -> dict[str, Any]:
    """Parameters of LPIPS(backbone).

    Args:
      backbone: "vgg", "alex" or "squeeze".
      weights: a file with the backbone, torchvision's vgg16-397923af.pth for example, and perhaps with the heads.
      heads: a file with the heads; None for those in weights, or else in the installed package lpips.

    Raises:
      FileNotFoundError, ImportError, ValueError: as files.read_state_dict, find_heads and lpips_to_params.
    """
    found = files.read_state_dict(weights)
    if heads is not None or not any(map(HEAD.fullmatch, found)):
        found = found | files.read_state_dict(find_heads(backbone) if heads is None else heads)
    return lpips_to_params(backbone, found)


def lpips_to_params(backbone: str, weights: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Parameters of LPIPS(backbone) from arrays by the names above.

    Raises:
      ValueError: no such backbone; or lists every array missing, left over, or of another shape.
    """
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    wanted = layers.param_shapes(LPIPS(backbone), image, image)
    names = {path: f"{path}.weight" for path in wanted if path.startswith("head_")}
    for path in wanted:
        layer = path.rpartition("/")[0]
        names |= {layer: re.sub(r"net/(?:conv|fire)_", "features.", layer).replace("/", ".")} if layer else {}
    given = {}
    for name, array in weights.items():
        head, ours = HEAD.fullmatch(name), re.sub(r"net\.slice\d+\.", "features.", name)
        if head:
            given[f"head_{head[1]}.weight"] = array.reshape(-1)
        elif not IGNORED.fullmatch(name):
            given[ours] = array
    return cast(dict[str, Any], layers.to_params(given, names, wanted, frozenset()))
