"""TFDS builder `digits`: 1797 handwritten digits, uint8 8x8x1, from the copy inside scikit-learn.

It needs no network and no TensorFlow, neither to prepare nor to read. TFDS takes the name of the data set from
the name of this folder, so neither may be renamed alone.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

DESCRIPTION = """\
8x8 grey images of handwritten digits by 43 people: the test part of the UCI set "Optical Recognition of
Handwritten Digits", as shipped with scikit-learn. The values 0..16 are stored as round(value * 255 / 16).
"""

CITATION = """\
@misc{alpaydin1998digits,
  author = {Alpaydin, E. and Kaynak, C.},
  title = {Optical Recognition of Handwritten Digits},
  howpublished = {UCI Machine Learning Repository},
  year = {1998},
  doi = {10.24432/C50P49},
}
"""


class Builder(tfds.core.GeneratorBasedBuilder):
    """scikit-learn's 1797 digits in their own order, in one split "train"."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(
            {
                # Not tfds.features.Image: encoding that one needs TensorFlow.
                "image": tfds.features.Tensor(shape=(8, 8, 1), dtype=np.uint8),
                "label": tfds.features.ClassLabel(num_classes=10),
            }
        )
        return tfds.core.DatasetInfo(
            builder=self,
            description=DESCRIPTION,
            citation=CITATION,
            features=features,
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager  # nothing is downloaded
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        from sklearn.datasets import load_digits  # a slow import, needed only on first use

        values, labels = load_digits(return_X_y=True)
        images = np.round(values * 255 / 16).astype(np.uint8).reshape(-1, 8, 8, 1)
        for key, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield key, {"image": image, "label": int(label)}
