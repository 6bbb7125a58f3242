"""Pictures as files: one, all side by side in one, or an array of them; every file whole or not at all."""

import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from ddpm_jax import images
from ddpm_jax.host.storage import make_directory, replacing


def enlarged(pictures: np.ndarray) -> np.ndarray:
    """uint8 [..., H, W, C], small ones enlarged by whole factors."""
    return np.repeat(np.repeat(pictures, factor := max(1, 48 // pictures.shape[-3]), axis=-3), factor, axis=-2)


def save_grid(path: Path, pictures: np.ndarray, columns: int | None = None) -> None:
    """uint8 [N, H, W, C] as one PNG, small images enlarged; as square as it can be, unless columns are given."""
    make_directory(path.parent)
    save_png(path, images.grid(enlarged(pictures), columns=columns))


def save_npz(
    path: Path, pictures: Callable[[], Iterable[np.ndarray]], num_images: int, labels: np.ndarray | None = None
) -> None:
    """`images`, uint8 [N, H, W, C]; the same as `arr_0` and their labels as `arr_1`, int64 [N], as ADM writes them.

    ADM's evaluator (guided-diffusion/evaluations) reads arr_0 and nothing else. `pictures` gives them part after part
    whenever it is called, so they need not be in memory together.
    """
    shape = (num_images, *next(iter(pictures())).shape[1:])
    make_directory(path.parent)
    with replacing(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("images", "arr_0"):
            _write_member(archive, name, np.dtype(np.uint8), shape, pictures())
        if labels is not None:
            _write_member(archive, "arr_1", np.dtype(np.int64), labels.shape, [labels.astype(np.int64)])


def _write_member(
    archive: zipfile.ZipFile, name: str, dtype: np.dtype, shape: tuple[int, ...], parts: Iterable[np.ndarray]
) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array_header_1_0(member, header)
        for part in parts:
            member.write(np.ascontiguousarray(part).data)


def save_png(path: Path, picture: np.ndarray) -> None:
    """uint8 [H, W, C] as a PNG, made `images.viewable` before."""
    picture = images.viewable(picture)
    with replacing(path) as file:
        Image.fromarray(picture.squeeze(-1) if picture.shape[-1] == 1 else picture).save(file, format="PNG")
