"""Pictures as files: all side by side in one, an array, or a folder of them; every file whole or not at all."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from ddpm_jax import images
from ddpm_jax.host.storage import replacing

MOST_CHANNELS = 4
DIGITS = 6  # at least, of the numbers of pictures in a folder

Save = Callable[[np.ndarray, np.ndarray | None], None]


def saver(out: str) -> Save:
    """save(pictures uint8 [N, H, W, C], labels [N] or None), as `out` says: .png, .npz, or a folder.

    A folder is what ends in "/", is there already, or has no ending.

    Raises:
      ValueError: another ending; a folder that is not empty.
    """
    path = Path(out)
    if out.endswith("/") or path.is_dir() or not path.suffix:
        _check_empty(path)
        return lambda pictures, labels: save_folder(path, pictures)
    if path.suffix == ".png":
        return lambda pictures, labels: save_grid(path, pictures)
    if path.suffix == ".npz":
        return lambda pictures, labels: save_npz(path, pictures, labels)
    raise ValueError(f"unknown ending {path.suffix!r} of --out {out} (known: .png, .npz, and FOLDER/)")


def save_grid(path: Path, pictures: np.ndarray) -> None:
    """uint8 [N, H, W, C] as one PNG, small images enlarged by whole factors."""
    height = pictures.shape[1]
    picture = np.repeat(np.repeat(pictures, factor := max(1, 48 // height), axis=1), factor, axis=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    _save_png(path, images.grid(picture))


def save_npz(path: Path, pictures: np.ndarray, labels: np.ndarray | None = None) -> None:
    """`images`, uint8 [N, H, W, C]; the same as `arr_0` and their labels as `arr_1`, int64 [N], as ADM writes them.

    ADM's evaluator (guided-diffusion/evaluations) reads arr_0 and nothing else.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        if labels is None:
            np.savez_compressed(file, images=pictures, arr_0=pictures)
        else:
            np.savez_compressed(file, images=pictures, arr_0=pictures, arr_1=np.asarray(labels, np.int64))


def save_folder(path: Path, pictures: np.ndarray) -> None:
    """000000.png, 000001.png, ... in a new or empty folder.

    Raises:
      ValueError: a folder that is not empty.
    """
    _check_empty(path)
    digits = max(DIGITS, len(str(len(pictures) - 1)))
    path.mkdir(parents=True, exist_ok=True)
    for i, picture in enumerate(pictures):
        _save_png(path / f"{i:0{digits}d}.png", picture)


def _save_png(path: Path, picture: np.ndarray) -> None:
    channels = picture.shape[-1]
    if channels > MOST_CHANNELS:
        raise ValueError(
            f"a PNG has 1 to {MOST_CHANNELS} channels, but the images have {channels}: --out FILE.npz takes them"
        )
    with replacing(path) as file:
        Image.fromarray(picture.squeeze(-1) if channels == 1 else picture).save(file, format="PNG")


def _check_empty(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise ValueError(f"--out {path} is a file: allowed are a FOLDER/, FILE.png and FILE.npz")
    if path.is_dir() and any(path.iterdir()):
        raise ValueError(f"the folder --out {path} is not empty: choose another one")
