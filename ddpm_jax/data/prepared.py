"""TFDS data sets as a `Source`, without TensorFlow.

Files are read through TFDS's data sources (array_record), found by what lies in the data directory rather than by
the code that made it, so any version that was prepared can be read. tensorflow_datasets takes half a second to
import, so it is imported where it is used and `import ddpm_jax` stays quick.
"""

import contextlib
import difflib
import importlib.util
import io
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_jax.data.images import Images, check_order, collect, fit, with_channels
from ddpm_jax.data.labels import checked
from ddpm_jax.data.records import CAPTION, IMAGE, LABEL, Feature, Indices, Record, Source, texts

DIGITS = "digits"
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CAPTIONS = ("caption", "captions", "text")
"""What features with texts are called, as in TFDS's laion400m and coco_captions."""
NAME = re.compile(r"\w+(/[\w.\-]+)?(:[\w.*]+)?")
MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def open_tfds(
    name: str, data_dir: Path | None, split: str, image_size: int | None, *, only_images: bool = False
) -> Source:
    """The features `image`, `label` and `caption` of one split of a TFDS data set, in TFDS's order.

    A label is a ClassLabel; a caption is a text, or the first of several ("" if there are none), called as one of
    CAPTIONS. The digits' captions are "a handwritten seven" and its like.

    Args:
      name: "digits" (prepared here on first use), "mnist", "name/config:version" …
      data_dir: TFDS data directory; None means TFDS's own and lets TFDS download what is missing.
      split: "train", "test", "train[:80%]" …
      image_size: crop and resize as `images.fit` does; None wants all images to have one size already.
      only_images: leave the others out.

    Raises:
      FileNotFoundError: data_dir is given and does not hold the data set.
      ValueError: unknown name or split, no uint8 `image` feature, or files of another format.
    """
    builder = _builder(name, data_dir)
    feature = _image_feature(name, builder)
    data = _data_source(name, builder, split)
    decode = _decoder(name, feature)
    first = decode(data[0]["image"])
    check_order(f"an image of {name!r}", first.shape)
    shape = fit(first, image_size).shape
    spec = {IMAGE: Feature(shape, np.dtype(np.uint8))}
    classes = None if only_images else _classes(name, builder)
    caption = None if only_images else _caption(name, builder)
    if classes is not None:
        spec[LABEL] = Feature((), np.dtype(np.int32), classes)
    if caption is not None:
        spec[CAPTION] = Feature((), np.dtype(object))

    def take(indices: Indices, names: Sequence[str]) -> Record:
        found = data.__getitems__([int(index) for index in indices])
        record: Record = {}
        if IMAGE in names:
            images = [fit(decode(each["image"]), image_size) for each in found]
            record[IMAGE] = collect(images, indices, shape, lambda index: f"image {index} of {name}")
        if LABEL in names and classes is not None:
            numbers = [int(each["label"]) for each in found]
            record[LABEL] = checked(numbers, classes, lambda i: f"image {indices[i]} of {name} has")
        if CAPTION in names and caption is not None:
            record[CAPTION] = texts([caption(each) for each in found])
        return record

    files = lambda: [(path.name, path.stat().length) for path in builder.info.splits[split].filepaths]
    return Source(name, len(data), spec, take, files=files)


def _classes(name: str, builder: Any) -> tuple[str, ...] | None:
    """The names of the labels of a data set, None if it has none."""
    import tensorflow_datasets as tfds

    feature = builder.info.features["label"] if "label" in builder.info.features else None
    if not isinstance(feature, tfds.features.ClassLabel) or not feature.num_classes:
        return None
    return NUMBERS if name == DIGITS else tuple(feature.names)


def _caption(name: str, builder: Any) -> Callable[[Any], str] | None:
    """What finds the caption in an example of TFDS, None if a data set has none."""
    import tensorflow_datasets as tfds

    if name == DIGITS:
        return lambda example: f"a handwritten {NUMBERS[example['label']]}"
    features = builder.info.features
    for called in [each for each in CAPTIONS if each in features]:
        several = isinstance(features[called], tfds.features.Sequence)
        feature, inner = features[called].feature if several else features[called], None
        if isinstance(feature, tfds.features.FeaturesDict) and "text" in feature:
            feature, inner = feature["text"], "text"
        if isinstance(feature, tfds.features.Text):
            return partial(_text, called=called, inner=inner, several=several)
    return None


def _text(example: Any, *, called: str, inner: str | None, several: bool) -> str:
    """The caption of an example of TFDS, or the first of several."""
    value = example[called] if inner is None else example[called][inner]
    if several:
        value = value[0] if len(value) else ""
    return value.decode() if isinstance(value, bytes) else str(value)


def splits_of_tfds(name: str, data_dir: Path | None) -> tuple[str, ...]:
    """Names of the splits of a TFDS data set; arguments and errors as `open_tfds`."""
    return tuple(_builder(name, data_dir).info.splits)


def known_names() -> list[str]:
    """Names of the data sets that TFDS can prepare, and "digits"."""
    import tensorflow_datasets as tfds

    # Community data sets are listed from the network and need TensorFlow.
    return sorted({DIGITS, *tfds.list_builders(with_community_datasets=False)})


def prepared_names(data_dir: Path) -> list[str]:
    """Names of the data sets whose files lie in a TFDS data directory."""
    with_version = data_dir.glob("*/*/features.json")
    with_config = data_dir.glob("*/*/*/features.json")
    found = {path.relative_to(data_dir).parts for path in (*with_version, *with_config)}
    # A folder TFDS has not renamed yet is unfinished.
    return sorted({parts[0] for parts in found if not any(part.startswith("incomplete.") for part in parts)})


def _builder(name: str, data_dir: Path | None) -> Any:
    return _digits(data_dir) if name == DIGITS else _find(name, data_dir)


def _digits(data_dir: Path | None) -> Any:
    """The builder of the embedded digits, prepared."""
    from ddpm_jax.data.digits.digits_dataset_builder import Builder

    def new() -> Builder:
        return Builder(data_dir=data_dir, file_format="array_record")

    builder = new()
    if not builder.data_path.exists():
        try:
            _prepare_quietly(builder)
        except OSError:
            # TFDS writes elsewhere and renames at the end; the rename fails if another process came first.
            if not builder.data_path.exists():
                raise
        builder = new()
    if not builder.is_prepared():
        raise ValueError(f"{builder.data_path} is not a complete TFDS data set; delete it to prepare it again")
    return builder


def _prepare_quietly(builder: Any) -> None:
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    try:
        # TFDS prints two paragraphs about a download that does not happen; errors are exceptions and stay.
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare()
    finally:
        tfds.enable_progress_bar()


def _find(name: str, data_dir: Path | None) -> Any:
    """The builder of a data set that lies in data_dir, or (data_dir None) in TFDS's directory, or is downloaded."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import read_only_builder

    if data_dir is not None and not data_dir.is_dir():
        raise FileNotFoundError(f"data_dir {data_dir} is not a folder, so {name!r} cannot be read from it")
    if NAME.fullmatch(name):
        try:
            return read_only_builder.builder_from_files(name, data_dir=data_dir)
        except tfds.core.DatasetNotFoundError:
            pass  # said below, in one line
    if data_dir is not None:
        held = ", ".join(prepared_names(data_dir)) or "none"
        raise FileNotFoundError(f"no TFDS data set {name!r} in {data_dir}; the data sets there: {held}")
    return _download(name)


def declared_shape(name: str) -> tuple[int | None, ...]:
    """[H, W, C] of the images of a TFDS data set as its definition states it, None where they differ.

    Nothing is read, downloaded or prepared.

    Raises:
      ValueError: unknown name, or no uint8 `image` feature.
    """
    if name == DIGITS:
        from ddpm_jax.data.digits.digits_dataset_builder import Builder

        return _image_feature(name, Builder()).shape
    return _image_feature(name, _defined(name)).shape


def _defined(name: str) -> Any:
    """The builder of a data set that TFDS has the code of, prepared or not."""
    import tensorflow_datasets as tfds

    known = known_names()
    if not NAME.fullmatch(name) or re.split("[/:]", name)[0] not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"unknown data set {name!r}: neither a TFDS name (nearest: {near!r}) nor an existing folder of images, "
            ".npy or .npz file"
        )
    return tfds.builder(name, file_format="array_record")


def _download(name: str) -> Any:
    """The builder of a data set that TFDS downloads and prepares now, in its own data directory."""
    import tensorflow_datasets as tfds

    builder = _defined(name)
    if isinstance(_image_feature(name, builder), tfds.features.Image) and not _has_tensorflow():
        raise ValueError(
            f"{name!r} is not in {builder.data_dir_root}, and preparing it needs TensorFlow (reading does not): run "
            f"`tfds build {name} --file_format=array_record` where TensorFlow is installed and pass that data_dir"
        )
    builder.download_and_prepare()
    return builder


def _has_tensorflow() -> bool:
    return importlib.util.find_spec("tensorflow") is not None


def _image_feature(name: str, builder: Any) -> Any:
    features = builder.info.features
    if features is None or "image" not in features:
        raise ValueError(f"{name!r} has no feature 'image'; its features are {', '.join(features or ())}")
    feature = features["image"]
    if np.dtype(feature.np_dtype) != np.uint8:
        raise ValueError(f"the images of {name!r} are {np.dtype(feature.np_dtype)}; allowed is uint8")
    return feature


def _data_source(name: str, builder: Any, split: str) -> Any:
    import tensorflow_datasets as tfds

    image = builder.info.features["image"]
    # Our own decoding: TFDS's logs a warning unless OpenCV is installed.
    skip = {"image": tfds.decode.SkipDecoding()} if isinstance(image, tfds.features.Image) else None
    splits = ", ".join(builder.info.splits)
    try:
        return builder.as_data_source(split, decoders=skip)
    except NotImplementedError as error:
        stored = builder.info.file_format.value
        raise ValueError(
            f"{name!r} in {builder.data_dir} is stored as {stored}; without TensorFlow only array_record is read: "
            f"prepare it with `tfds build {name} --file_format=array_record`"
        ) from error
    # TFDS says so for an unknown split, a malformed part of one, and an empty part.
    except ValueError as error:
        raise ValueError(f"no images in the split {split!r} of {name!r}; its splits are {splits}") from error


def _decoder(name: str, feature: Any) -> Callable[[Any], Images]:
    """What turns a stored `image` feature into uint8 [H, W, C]."""
    import tensorflow_datasets as tfds
    from PIL import Image

    shape: tuple[int | None, ...] = feature.shape
    if not isinstance(feature, tfds.features.Image):
        if len(shape) not in (2, 3):
            raise ValueError(f"the images of {name!r} have shape {shape}; allowed are [H, W] and [H, W, C]")
        return with_channels
    channels = shape[-1]
    if channels not in MODES:
        raise ValueError(f"the images of {name!r} have {channels} channels; allowed are {', '.join(map(str, MODES))}")
    mode = MODES[channels]

    def decode(encoded: bytes) -> Images:
        with Image.open(io.BytesIO(encoded)) as picture:
            return with_channels(np.array(picture if picture.mode == mode else picture.convert(mode)))

    return decode
