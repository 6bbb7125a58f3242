"""Means and covariances in files: pytorch-fid's .npz (mu, sigma) and ADM's (mu_s and sigma_s of spatial features too).

Files written here hold one array more, `meta`: JSON that says how many images, of which data, by which network. The
other programs do not look at it, and files without it are read: what they were made of is unknown then.
"""

import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_jax.evaluate.samples.moments import Gaussian
from ddpm_jax.host import archives
from ddpm_jax.host.storage import replacing, require_file

DAMAGED = (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError)


@dataclass(frozen=True)
class Statistics:
    """Moments of a set of images.

    Attributes:
      features: of what FID compares (2048 of FID's Inception).
      spatial: of what sFID compares (2023), where there are any.
      about: what they were made of: "sha256" of the network's weights, "network", "resize", "data", ...; {} if unknown.
    """

    features: Gaussian
    spatial: Gaussian | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    def require(self, network: str, sha256: str) -> None:
        """Whether they are of this network, as far as they say.

        Raises:
          ValueError: they are of other weights.
        """
        said = self.about.get("sha256", sha256)
        if said != sha256:
            raise ValueError(
                f"the statistics are of {self.about.get('network', 'a network')} with weights {str(said)[:12]}, "
                f"and the features of {network} with weights {sha256[:12]}: they cannot be compared"
            )


def write(path: Path, statistics: Statistics) -> None:
    """A file that pytorch-fid and, with spatial features, ADM's evaluator read; it appears whole."""
    arrays: dict[str, Any] = {"mu": statistics.features.mean, "sigma": statistics.features.covariance}
    if statistics.spatial is not None:
        arrays |= {"mu_s": statistics.spatial.mean, "sigma_s": statistics.spatial.covariance}
    counts = {"n": statistics.features.count} if statistics.features.count is not None else {}
    arrays["meta"] = np.array(json.dumps({**statistics.about, **counts}, sort_keys=True))
    with replacing(path) as file:
        np.savez(file, **arrays)


def read(path: Path) -> Statistics:
    """Statistics in a file of pytorch-fid, ADM or `write`.

    Raises:
      FileNotFoundError: no such file.
      ValueError: no file of statistics: damaged, without mu and sigma, of shapes that do not fit, not finite, or a
        covariance that is not symmetric.
    """
    require_file(path)
    try:
        arrays = _arrays(path)
    except FileNotFoundError:
        raise
    except DAMAGED as error:
        raise ValueError(f"{path} is no file of statistics (.npz): {' '.join(str(error).split())}") from error
    about = _about(path, arrays)
    count = about.pop("n", None)
    if "mu" not in arrays or "sigma" not in arrays:
        raise ValueError(f"{path} holds {', '.join(sorted(arrays)) or 'nothing'}: statistics have mu and sigma")
    spatial = _gaussian(path, arrays, "mu_s", "sigma_s", count) if "mu_s" in arrays else None
    return Statistics(_gaussian(path, arrays, "mu", "sigma", count), spatial, about)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """ADM's files hold the images as well (arr_0): they are left where they are."""
    names = ("mu", "sigma", "mu_s", "sigma_s", "meta")
    archives.check(path, {f"{name}.npy" for name in names})
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in names if name in file.files}


def _about(path: Path, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    if "meta" not in arrays:
        return {}
    try:
        about = json.loads(str(arrays["meta"]))
    except ValueError as error:
        raise ValueError(f"{path}: meta is not JSON: {error}") from error
    if not isinstance(about, dict):
        raise ValueError(f"{path}: meta is {about!r}, no mapping")
    return about


def _gaussian(path: Path, arrays: Mapping[str, np.ndarray], mean: str, covariance: str, count: int | None) -> Gaussian:
    if covariance not in arrays:
        raise ValueError(f"{path} holds {mean} without {covariance}")
    mu, sigma = arrays[mean], arrays[covariance]
    if mu.ndim != 1 or sigma.shape != (len(mu),) * 2 or mu.dtype.kind != "f" or sigma.dtype.kind != "f":
        raise ValueError(f"{path}: {mean} [D] and {covariance} [D, D] are floats, got {mu.dtype} {list(mu.shape)} and "
                         f"{sigma.dtype} {list(sigma.shape)}")  # fmt: skip
    mu, sigma = mu.astype(np.float64), sigma.astype(np.float64)
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise ValueError(f"{path}: {mean} or {covariance} is not finite")
    if not np.allclose(sigma, sigma.T, rtol=0, atol=1e-6 * np.abs(np.diagonal(sigma)).max()):
        raise ValueError(f"{path}: {covariance} is not symmetric: it is no covariance")
    return Gaussian(mu, sigma, count)
