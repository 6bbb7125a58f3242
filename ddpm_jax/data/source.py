"""Open a data set by its name: the embedded digits, a TFDS set, a folder of pictures, or an array file."""

import warnings
from pathlib import Path

from ddpm_jax.data import latents
from ddpm_jax.data.arrays import open_array
from ddpm_jax.data.folder import open_folder
from ddpm_jax.data.images import Say, check_order
from ddpm_jax.data.labels import NONE, WAYS
from ddpm_jax.data.prepared import DIGITS, declared_shape, known_names, open_tfds, splits_of_tfds
from ddpm_jax.data.records import Progress, Source, in_memory
from ddpm_jax.host.storage import require_file
from ddpm_jax.names import choose

ARRAY_ENDINGS = (".npy", ".npz")
MOST_IMAGE_SIZE = 2**14


def load(
    name: str,
    *,
    data_dir: str | Path | None = None,
    split: str = "train",
    image_size: int | None = None,
    key: str | None = None,
    transparency: str | None = None,
    labels: str | None = None,
    progress: Progress | None = None,
    say: Say = warnings.warn,
) -> Source:
    """The records called `name`, as a `Source`: images, and the labels and captions that the set has.

    A set of at most `records.MEMORY_BOUND` bytes is decoded now, into arrays; a larger one batch by batch.

    Args:
      name: "digits", the 1797 digits of scikit-learn, written to the TFDS data directory on first use; or a TFDS
        name such as "mnist"; or the path of a folder of pictures (`folder.open_folder`); or the path of a .npy or
        .npz file with a uint8 array [N, H, W, C] or [N, H, W] (`arrays.open_array`); or the path of a folder of latents
        (`latents.open_latents`). A folder that is called like a TFDS set is meant only if its path is written with a
        separator ("./mnist").
      data_dir: TFDS data directory. If given, nothing is downloaded. None means TFDS's default, TFDS_DATA_DIR or
        ~/tensorflow_datasets, and TFDS downloads what is not there.
      split: a TFDS split, such as "test" or "train[:80%]"; a folder or a file has the split "train" only.
      image_size: crop centrally to a square and resize to this many pixels (`images.fit`).
      key: of the array in a .npz file that holds several of images.
      transparency: the colour behind the transparent pictures of a folder, such as "black" or "#rrggbb", white by
        default; or "drop", their colours as stored.
      labels: what the labels of a folder of pictures are: "folder" or "prefix" (`folder.open_folder`); or "none": only
        the images are read, of any set.
      progress: called as progress(images decoded, images in all) while a set is decoded into memory.
      say: is told, in a line each, what of a folder or a file was not taken as it is.

    Raises:
      FileNotFoundError: no such path, or data_dir does not hold the data set.
      ValueError: unknown name or split, or images that cannot be used; one line that says what is allowed.
    """
    _check(image_size, labels)
    path = _path(name)
    is_array = path.suffix.lower() in ARRAY_ENDINGS
    if key is not None and path.suffix.lower() != ".npz":
        raise ValueError(f"--data.key {key!r} is for .npz files, which {name!r} is not")
    of_pictures = not is_array and _is_folder(name, path)
    for option, value in (("transparency", transparency), ("labels", None if labels == NONE else labels)):
        if value is not None and not of_pictures:
            raise ValueError(f"--data.{option} {value!r} is for folders of pictures, which {name!r} is not")
    if not is_array and not of_pictures:
        directory = None if data_dir is None else Path(data_dir).expanduser()
        return in_memory(open_tfds(name, directory, split, image_size, only_images=labels == NONE), progress)
    if data_dir is not None:
        raise ValueError(f"data_dir {data_dir} is for TFDS data sets, but {name!r} is a path; leave data_dir out")
    if split != "train":
        raise ValueError(f"{name} has no split {split!r}; a folder or an array file has only the split 'train'")
    if not path.exists():
        raise FileNotFoundError(f"no such file or folder: {path}")
    require_file(path)
    if is_array:
        return in_memory(open_array(path, image_size, key, say, only_images=labels == NONE), progress)
    if path.is_dir() and latents.is_latents(path):
        _check_latents(name, image_size, transparency, labels)
        return latents.open_latents(path)
    if not path.is_dir():
        raise ValueError(f"{path} is a file: allowed are a folder of pictures, a .npy file and a .npz file")
    return in_memory(open_folder(path, image_size, transparency, labels, say), progress)


def _check(image_size: int | None, labels: str | None) -> None:
    if image_size is not None and not (isinstance(image_size, int) and 1 <= image_size <= MOST_IMAGE_SIZE):
        raise ValueError(f"image_size must be a whole number in [1, {MOST_IMAGE_SIZE}], got {image_size!r}")
    if labels is not None:
        choose("--data.labels", labels, dict.fromkeys(WAYS))


def _check_latents(name: str, image_size: int | None, transparency: str | None, labels: str | None) -> None:
    if labels == NONE:
        raise ValueError(f"{name} holds latents, and --data.labels none reads images only")
    for option, value in (("image-size", image_size), ("transparency", transparency), ("labels", labels)):
        if value is not None:
            raise ValueError(f"--data.{option} {value!r} is for images, and {name!r} holds latents of some")


def splits(name: str, *, data_dir: str | Path | None = None) -> tuple[str, ...]:
    """The splits of a data set; a folder or an array file has "train" only.

    Raises:
      FileNotFoundError, ValueError: as `load`, but the images are not looked at.
    """
    path = _path(name)
    if path.suffix.lower() in ARRAY_ENDINGS or _is_folder(name, path):
        return ("train",)
    return splits_of_tfds(name, None if data_dir is None else Path(data_dir).expanduser())


def image_shape(name: str, *, image_size: int | None = None) -> tuple[int, int, int]:
    """[H, W, C] of the images of a data set that TFDS defines, without reading or downloading any.

    Raises:
      ValueError: a path or an unknown name, or images of several sizes and no image_size.
    """
    path = _path(name)
    if path.suffix.lower() in ARRAY_ENDINGS or _is_folder(name, path):
        raise ValueError(f"the size of the images of {name!r} is known only when they are read")
    height, width, channels = (*declared_shape(name), 1)[:3]  # grey ones may be declared as [H, W]
    if height is not None and width is not None and channels is not None:
        check_order(f"an image of {name!r}", (height, width, channels))
    if image_size is not None:
        height = width = image_size
    if height is None or width is None or channels is None:
        raise ValueError(
            f"the images of {name!r} differ in size, {[height, width, channels]}: it needs image_size "
            "(--data.image-size)"
        )
    return height, width, channels


def _path(name: str) -> Path:
    """The path that a name would be, if it is one.

    Raises:
      ValueError: an empty name; ~user of a user that there is not.
    """
    if not name:
        raise ValueError("the name of a data set must not be empty")
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise ValueError(f"no data set {name!r}: {error}") from None


def _is_folder(name: str, path: Path) -> bool:
    """Whether `name` means a folder rather than a TFDS data set."""
    if path.is_absolute() or name.startswith((".", "~")):
        return True
    return path.is_dir() and name not in (DIGITS, *known_names())
