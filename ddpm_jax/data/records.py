"""What a data set is here: numbered records, read by index.

A record is a mapping of arrays with one leading axis, an entry for each example. Every one has `image`, uint8
[n, H, W, C] with C = 1 for grey and 3 for RGB, values 0..255 (scaling to [-1, 1] belongs to training, not to reading),
and what the data has besides: `label`, int32 [n], and `caption`, Python strings [n].
Every reader (`folder`, `prepared`, `arrays`) turns a place into a `Source` of them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ddpm_jax.data.images import Images
from ddpm_jax.names import unknown

MEMORY_BOUND = 1 << 30
"""Sets of at most this many bytes once decoded (1 GiB) are kept in memory; larger ones are decoded per batch."""

CHUNK = 1024

IMAGE, LABEL, CAPTION = "image", "label", "caption"

Record = dict[str, np.ndarray]
Indices = NDArray[np.int64]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Feature:
    """What the records of a source have under one name.

    Attributes:
      shape: of one example's entry, () for a number or a text.
      dtype: of the array; that of Python's strings is `object`.
      classes: names of the classes 0, 1, ... of a label, if they have some.
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
      spec: what a record has, by name; always `image`.
      take: (int64 [n], names) -> the entries of these names, new arrays at each call, [n, ...] each. Called from
        several threads by `prefetch`.
    """

    name: str
    num_examples: int
    spec: Mapping[str, Feature]
    take: Callable[[Indices, Sequence[str]], Record]

    def __len__(self) -> int:
        return self.num_examples

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of every image."""
        height, width, channels = self.spec[IMAGE].shape
        return height, width, channels

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
        """The images x_i for i in `indices`, uint8 [n, H, W, C]; the caller may write into them."""
        return self.read(indices, (IMAGE,))[IMAGE]


def image_feature(shape: tuple[int, ...]) -> Feature:
    """That of images [H, W, C]."""
    return Feature(shape, np.dtype(np.uint8))


def of_columns(
    name: str, num_examples: int, spec: Mapping[str, Feature], columns: Mapping[str, Callable[[Indices], np.ndarray]]
) -> Source:
    """The source whose entries are read one name at a time, each by its own function of the indices."""
    return Source(name, num_examples, spec, lambda indices, names: {each: columns[each](indices) for each in names})


def from_arrays(name: str, arrays: Mapping[str, np.ndarray], classes: tuple[str, ...] | None = None) -> Source:
    """The rows of arrays [N, ...], in memory or mapped from a file: {"image": uint8 [N, H, W, C], ...}.

    Args:
      name: what to call it in messages.
      arrays: by the names of a record, all with N rows.
      classes: names of the labels.

    Raises:
      ValueError: arrays of different lengths.
    """
    lengths = {len(array) for array in arrays.values()}
    if len(lengths) > 1:
        counts = ", ".join(f"{len(array)} of {feature}" for feature, array in arrays.items())
        raise ValueError(f"{name} has {counts}; there must be as many of each")
    spec = {
        feature: Feature(array.shape[1:], array.dtype, classes if feature == LABEL else None)
        for feature, array in arrays.items()
    }
    # np.asarray: indexing a memory map would hand out another np.memmap.
    columns = {feature: lambda indices, array=array: np.asarray(array[indices]) for feature, array in arrays.items()}
    return of_columns(name, lengths.pop(), spec, columns)


def in_memory(source: Source, progress: Progress | None = None) -> Source:
    """The same records, their images decoded once into one array if that takes at most MEMORY_BOUND bytes.

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
    label = source.spec.get(LABEL)
    return from_arrays(source.name, arrays, label.classes if label else None)
