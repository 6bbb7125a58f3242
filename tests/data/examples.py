"""Six examples whose labels and captions are known, and whether a source has them: record i is what was written."""

import numpy as np

N = 6
IMAGES = np.random.RandomState(5).randint(0, 256, (N, 4, 4, 3), np.uint8)
CAPTIONS = ["a cat", "a dog,\nbarking", "", "“ein Hund”", "a cat", "猫"]
NAMES = ["cat", "dog", "ant", "dog", "cat", "bee"]
NUMBERS = [2, 3, 0, 3, 2, 1]
"""The places of NAMES among ant, bee, cat, dog."""
CLASSES = ("ant", "bee", "cat", "dog")


def everything(source):
    """All records, and the same read one by one from behind."""
    whole = source.read(np.arange(len(source)))
    for i in reversed(range(len(source))):
        one = source.read([i])
        for name, values in whole.items():
            np.testing.assert_array_equal(one[name], values[i : i + 1])
            assert values.shape[1:] == source.spec[name].shape and values.dtype == source.spec[name].dtype
    assert list(whole) == list(source.spec)
    return whole


def agrees(source, order, *, label=None, classes=None, caption=None):
    """Whether record i is example order[i]."""
    whole = everything(source)
    np.testing.assert_array_equal(whole.pop("image"), IMAGES[order])
    assert source.classes == classes
    if label is not None:
        assert whole.pop("label").tolist() == [label[i] for i in order]
    if caption is not None:
        assert whole.pop("caption").tolist() == [caption[i] for i in order]
    assert not whole
