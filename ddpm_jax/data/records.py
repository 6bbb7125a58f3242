"""What a data set is here: numbered records, read by index.

A record is a mapping of arrays with one leading axis, an entry for each example. Every one has `image`, uint8
[n, H, W, C] with C = 1 for grey and 3 for RGB, values 0..255 (scaling to [-1, 1] belongs to training, not to reading),
and what the data has besides: `label`, int32 [n], and `caption`, Python strings [n]. Images that an autoencoder has
encoded are `latent` instead, float32 [n, h, w, D], with `log_variance` where these are the means of posteriors.
Every reader (`folder`, `prepared`, `arrays`) turns a place into a `Source` of them.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddpm_jax.data.images import Images
from ddpm_jax.names import unknown

MEMORY_BOUND = 1 << 30
"""Sets of at most this many bytes once decoded (1 GiB) are kept in memory; larger ones are decoded per batch."""

CHUNK = 1024
MOST_NAMED = 4

IMAGE, LABEL, CAPTION = "image", "label", "caption"
LATENT, LOG_VARIANCE = "latent", "log_variance"

Record = dict[str, np.ndarray]
Indices = NDArray[np.int64]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Feature:
    """What the records of a source have under one name.

    Attributes:
      shape: of one example's entry, () for a number or a text.
      dtype: of the array; that of Python's strings is `object`.
      classes: of a label, the names of its classes 0, 1, ...
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    classes: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Source:
    """Records i in [0, num_examples).

    Attributes:
      name: what to call the data set in messages.
      num_examples: number of records, at least 1.
      spec: what a record has, by name; always `image` or `latent`.
      take: (int64 [n], names) -> the entries of these names, new arrays at each call, [n, ...] each. Called from
        several threads by `prefetch`.
      arrays: those entries that lie in memory, whole, [N, ...]; not to be written into.
      files: () -> name and size of each file that the others are read from; None where that is one, or none.
      autoencoder: of latents, the folder that has what encoded them.
    """

    name: str
    num_examples: int
    spec: Mapping[str, Feature]
    take: Callable[[Indices, Sequence[str]], Record]
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    files: Callable[[], Iterable[tuple[str, int]]] | None = None
    autoencoder: Path | None = None

    def __len__(self) -> int:
        return self.num_examples

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of every image, or of its latents."""
        height, width, channels = self.spec[IMAGE if IMAGE in self.spec else LATENT].shape
        return height, width, channels

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The names of its labels, None without labels."""
        return self.spec[LABEL].classes if LABEL in self.spec else None

    def read(self, indices: Sequence[int] | NDArray[np.integer], features: Sequence[str] | None = None) -> Record:
        """The records of `indices`, {name: [n, ...]}; the caller may write into them.

        Args:
          indices: n numbers in [0, num_examples).
          features: only these names; what is not asked for is not decoded. All by default.

        Raises:
          IndexError: no such example.
          ValueError: no such feature.
        """
        indices = np.asarray(indices, np.int64)
        outside = indices[(indices < 0) | (indices >= self.num_examples)]
        if outside.size:
            raise IndexError(f"image {outside[0]} asked of {self.name}, which has images 0 to {self.num_examples - 1}")
        for name in features or ():
            if name not in self.spec:
                raise unknown(f"feature of {self.name}", name, self.spec)
        return self.take(indices, tuple(self.spec) if features is None else features)

    def images(self, indices: Sequence[int] | NDArray[np.integer]) -> Images:
        """The images x_i for i in `indices`, uint8 [n, H, W, C]; the caller may write into them.

        Raises:
          ValueError: latents.
        """
        if IMAGE not in self.spec:
            raise ValueError(f"{self.name} holds latents, and images are needed here")
        return self.read(indices, (IMAGE,))[IMAGE]


def of_images(
    name: str, num_examples: int, image_shape: tuple[int, ...], images: Callable[[Indices], np.ndarray]
) -> Source:
    """The source of images alone, uint8 [n, H, W, C] = images(indices)."""
    spec = {IMAGE: Feature(image_shape, np.dtype(np.uint8))}
    return Source(name, num_examples, spec, lambda indices, names: {each: images(indices) for each in names})


def with_arrays(source: Source, arrays: Mapping[str, np.ndarray], classes: tuple[str, ...] | None = None) -> Source:
    """The records of a source, and what arrays [N, ...] have beside them.

    Args:
      source: of N records.
      arrays: by names that the source has not.
      classes: the names of `label`, if that is one of them.

    Raises:
      ValueError: an array of another length.
    """
    for feature, array in arrays.items():
        if len(array) != len(source):
            raise ValueError(
                f"{source.name} has {len(source)} images, but {len(array)} {feature}s; there must be as many of each"
            )
    spec = {
        feature: Feature(array.shape[1:], array.dtype, classes if feature == LABEL else None)
        for feature, array in arrays.items()
    }

    def take(indices: Indices, names: Sequence[str]) -> Record:
        taken = source.take(indices, [name for name in names if name in source.spec])
        return {name: arrays[name][indices] if name in arrays else taken[name] for name in names}

    return replace(source, spec={**source.spec, **spec}, take=take, arrays={**source.arrays, **arrays})


def from_arrays(name: str, arrays: Mapping[str, np.ndarray], classes: tuple[str, ...] | None = None) -> Source:
    """The rows of arrays [N, ...], in memory or mapped from a file: {"image": uint8 [N, H, W, C], ...}.

    Args:
      name: what to call it in messages.
      arrays: by the names of a record, all with N rows.
      classes: names of the labels.

    Raises:
      ValueError: arrays of different lengths.
    """
    images = arrays[IMAGE]
    # np.asarray: indexing a memory map would hand out another np.memmap.
    source = of_images(name, len(images), images.shape[1:], lambda indices: np.asarray(images[indices]))
    if not isinstance(images, np.memmap):
        source = replace(source, arrays={IMAGE: images})
    return with_arrays(source, {feature: array for feature, array in arrays.items() if feature != IMAGE}, classes)


def texts(values: Sequence[str]) -> np.ndarray:
    """An array [n] of Python strings."""
    array = np.empty(len(values), object)
    array[:] = values
    return array


def in_memory(source: Source, progress: Progress | None = None) -> Source:
    """The same records, decoded once into arrays if the images take at most MEMORY_BOUND bytes.

    Args:
      source: where the records come from.
      progress: called as progress(records read so far, records in all) after every chunk.
    """
    if len(source) * int(np.prod(source.image_shape)) > MEMORY_BOUND:
        return source
    arrays = {name: np.empty((len(source), *each.shape), each.dtype) for name, each in source.spec.items()}
    for start in range(0, len(source), CHUNK):
        stop = min(start + CHUNK, len(source))
        for name, values in source.read(np.arange(start, stop)).items():
            arrays[name][start:stop] = values
        if progress is not None:
            progress(stop, len(source))
    return from_arrays(source.name, arrays, source.classes)


def describe(source: Source) -> str:
    """What there is: "digits: 1797 images of 8 x 8 x 1, labels of 10 classes (zero, one, ..., nine), captions"."""
    kind = IMAGE if IMAGE in source.spec else LATENT
    parts = [f"{len(source)} {kind}s of {' x '.join(map(str, source.image_shape))}"]
    if (classes := source.classes) is not None:
        few = classes if len(classes) <= MOST_NAMED else (*classes[: MOST_NAMED - 1], "...", classes[-1])
        parts.append(f"labels of {len(classes)} classes ({', '.join(few)})")
    parts += [f"{name}s" for name in source.spec if name not in (IMAGE, LABEL, LATENT, LOG_VARIANCE)]
    return f"{source.name}: {', '.join(parts)}"
