"""Labels and captions of arrays and of TFDS sets, and that a batch keeps what belongs to an example together."""

from pathlib import Path

import numpy as np
import pytest

from ddpm_jax import data
from ddpm_jax.config.run import Config, ModelConfig
from ddpm_jax.host import picture_files
from ddpm_jax.train import loop
from tests.data.examples import CAPTIONS, CLASSES, IMAGES, NAMES, NUMBERS, N, agrees, everything

SMALL = Config(model=ModelConfig(channels=4, channel_multipliers=(1,), attention_resolutions=(), num_groups=2))
EMOJI = Path(__file__).parent.parent.parent.parent / "shared" / "emoji"


# ---------------------------------------------------------------------------------------------------------- arrays


@pytest.mark.parametrize(
    ("images", "label", "caption"),
    [
        ("images", "labels", "captions"),
        ("train_images", "train_labels", "train_captions"),
        ("image", "label", "caption"),
        ("pixels", "labels", "captions"),
        ("x_train", "y_train", None),
        ("arr_0", "arr_1", None),
    ],
)
@pytest.mark.usefixtures("bound")
@pytest.mark.parametrize("image_size", [None, 2])
def test_arrays(images, label, caption, image_size, tmp_path):
    texts = {} if caption is None else {caption: np.array(CAPTIONS)}
    read = lambda **options: data.load(str(tmp_path / "a.npz"), image_size=image_size, say=pytest.fail, **options)
    for given in (np.array(NUMBERS), np.array(NUMBERS, np.uint8)[:, None]):
        np.savez(tmp_path / "a.npz", **{images: IMAGES, label: given, **texts})
        source = read()
        found = everything(source)
        assert found["label"].tolist() == NUMBERS and source.classes == ("0", "1", "2", "3")
        if caption is not None:
            assert found["caption"].tolist() == CAPTIONS and type(found["caption"][0]) is str
        if image_size is None:
            np.testing.assert_array_equal(found["image"], IMAGES)
        assert list(read(labels="none").spec) == ["image"]
    for given in (np.array(NAMES), np.array(NAMES, "S")):
        np.savez(tmp_path / "a.npz", **{images: IMAGES, label: given})
        source = read()
        assert everything(source)["label"].tolist() == NUMBERS and source.classes == CLASSES


def test_arrays_that_are_none(tmp_path):
    """What is called like labels or captions and is none is said, or refused."""
    path = tmp_path / "a.npz"

    def load(**arrays):
        said = []
        np.savez(path, **arrays)
        return list(data.load(str(path), say=said.append).spec), said

    assert load(images=IMAGES, labels=np.eye(N)) == (
        ["image"],
        [f"{path}: 'labels' (float64 [6, 6]) are no labels, which are whole numbers or names [N]"],
    )
    assert load(images=IMAGES, captions=np.array(CAPTIONS, object))[1] == [
        f"{path}: 'captions' (object [6]) are no captions, which are strings [N]"
    ]
    for other in (np.zeros((N, 2)), np.arange(N + 1)):  # two without a name need not be ADM's
        assert load(arr_0=IMAGES, arr_1=other) == (["image"], [])
    for wrong, message in [
        ({"labels": np.arange(N + 1)}, r"holds 6 images in 'images', but 7 labels in 'labels'; there must be as many"),
        ({"captions": np.array(["a"])}, r"holds 6 images in 'images', but 1 captions in 'captions'"),
        ({"labels": np.arange(N) - 1}, r"image 0 of .* has label -1; allowed are 0 to 4; --data.labels none"),
        ({"labels": np.arange(N) + 2**16}, r"has label 65536; allowed are 0 to 65535"),
        ({"labels": np.full(N, -1)}, r"image 0 of .* has label -1; allowed are 0 to 0"),
        ({"captions": np.array([b"\xff"] * N)}, r"cannot read the texts of .*utf-8"),
    ]:
        with pytest.raises(ValueError, match=message):
            load(images=IMAGES, **wrong)
        assert list(data.load(str(path), labels="none").spec) == ["image"]


def test_samples_with_labels(tmp_path):
    """Those that `ddpm-jax sample --out FILE.npz` writes: images, the same as arr_0, their labels as arr_1."""
    picture_files.save_npz(tmp_path / "a.npz", lambda: [IMAGES], len(IMAGES), np.array(NUMBERS))
    agrees(data.load(str(tmp_path / "a.npz"), say=pytest.fail), np.arange(N), label=NUMBERS, classes=tuple("0123"))


@pytest.mark.skipif(not EMOJI.is_dir(), reason=f"no {EMOJI}")
def test_captioned_emoji():
    source, stored = data.load(str(EMOJI / "fluent_32.npz"), say=pytest.fail), np.load(EMOJI / "fluent_32.npz")
    found = source.read([0, 1234, 3138])
    np.testing.assert_array_equal(found["image"], stored["images"][[0, 1234, 3138]])
    assert found["caption"].tolist() == stored["captions"][[0, 1234, 3138]].tolist()
    assert data.describe(source).endswith("fluent_32.npz: 3139 images of 32 x 32 x 3, captions")


# ------------------------------------------------------------------------------------------------------------ TFDS


def test_digits(digits_dir):
    from sklearn.datasets import load_digits

    source = data.load("digits", data_dir=digits_dir)
    found = source.read(np.arange(1797))
    expected = load_digits().target
    np.testing.assert_array_equal(found["label"], expected)
    assert found["caption"].tolist() == [f"a handwritten {source.classes[k]}" for k in expected]
    assert source.classes == ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    np.testing.assert_array_equal(source.read([5])["image"], found["image"][5:6])
    assert data.describe(source) == (
        "digits: 1797 images of 8 x 8 x 1, labels of 10 classes (zero, one, two, ..., nine), captions"
    )
    assert list(data.load("digits", data_dir=digits_dir, labels="none").spec) == ["image"]


@pytest.fixture(scope="module")
def captioned_sets(tmp_path_factory):
    """TFDS sets with captions as laion400m and coco_captions have them, and an unlabelled split."""
    import tensorflow_datasets as tfds

    directory = tmp_path_factory.mktemp("captioned")
    image = tfds.features.Tensor(shape=(4, 4, 3), dtype=np.uint8)

    def prepare(name, features, values):
        class Base(tfds.core.GeneratorBasedBuilder, skip_registration=True):
            VERSION = tfds.core.Version("1.0.0")
            pkg_dir_path = tfds.core.Path(__file__).parent

            def _info(self):
                given = tfds.features.FeaturesDict({"image": image, **features})
                return tfds.core.DatasetInfo(builder=self, features=given, disable_shuffling=True)

            def _split_generators(self, dl_manager):
                return {"train": self._generate_examples()}

            def _generate_examples(self):
                for i in range(N):
                    yield i, {"image": IMAGES[i], **{key: values[key][i] for key in values}}

        type(name, (Base,), {"name": name}, skip_registration=True)(
            data_dir=directory, file_format="array_record"
        ).download_and_prepare()

    text, label = tfds.features.Text(), tfds.features.ClassLabel(names=list("dcba"))
    prepare("one_text", {"caption": text, "label": label}, {"caption": CAPTIONS, "label": NUMBERS})
    several = [[caption, "another"] if caption else [] for caption in CAPTIONS]
    prepare("several", {"captions": tfds.features.Sequence(text)}, {"captions": several})
    nested = [[{"id": 3, "text": each} for each in captions] for captions in several]
    prepare("nested", {"captions": tfds.features.Sequence({"id": np.int64, "text": text})}, {"captions": nested})
    prepare("unlabelled", {"label": label}, {"label": [0, 1, -1, 2, 3, 0]})
    return directory


@pytest.mark.usefixtures("bound")
def test_tfds(captioned_sets):
    load = lambda name, **options: data.load(name, data_dir=captioned_sets, **options)
    agrees(load("one_text"), np.arange(N), label=NUMBERS, classes=("d", "c", "b", "a"), caption=CAPTIONS)
    agrees(load("several"), np.arange(N), caption=CAPTIONS)
    agrees(load("nested"), np.arange(N), caption=CAPTIONS)
    agrees(load("unlabelled", labels="none"), np.arange(N))
    with pytest.raises(ValueError, match=r"image 2 of unlabelled has label -1; allowed are 0 to 3; --data.labels none"):
        load("unlabelled").read([0, 2])


# ----------------------------------------------------------------------------------------------------------- batches


@pytest.fixture
def whole(tmp_path):
    """A set whose images, labels and captions all say the number of their example."""
    images = np.arange(N, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 1), np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(N), captions=np.array([f"is {i}" for i in range(N)]))
    return data.load(str(tmp_path / "a.npz"))


NAMED = ("caption", "image", "label")


def test_what_belongs_to_an_example_stays_together(whole):
    for step in range(6):
        expected = data.batch_indices(3, step, 4, N)
        record = data.batch(whole, 3, step, 4, features=NAMED)
        assert list(record) == list(NAMED)
        assert record["label"].tolist() == expected.tolist() == record["image"][:, 0, 0, 0].tolist()
        assert record["caption"].tolist() == [f"is {i}" for i in expected]
        assert list(data.batch(whole, 3, step, 4)) == ["image"]


def test_shares_of_a_batch_are_its_rows(whole):
    record = data.batch(whole, 1, 2, 8, flip=True, features=NAMED)
    for rows in (slice(0, 3), slice(3, 8)):
        share = data.batch(whole, 1, 2, 8, flip=True, rows=rows, features=NAMED)
        for name, values in record.items():
            np.testing.assert_array_equal(share[name], values[rows])


def test_the_caller_owns_labels_and_captions(whole):
    for name, value in (("label", 9), ("caption", "x")):
        whole.read([1], [name])[name][:] = value
        assert value not in whole.read([1], [name])[name]


def test_what_is_not_there(whole, digits_dir, tmp_path):
    with pytest.raises(ValueError, match=r"unknown feature of .*a.npz 'labels'; did you mean 'label'\?"):
        data.batch(whole, 0, 0, 4, features=("image", "labels"))
    with pytest.raises(
        ValueError, match=r"unknown --data.labels 'prefixes'; did you mean 'prefix'.*folder, prefix, none\)"
    ):
        data.load("digits", data_dir=digits_dir, labels="prefixes")
    for way in ("folder", "prefix"):
        with pytest.raises(
            ValueError, match=rf"--data.labels '{way}' is for folders of pictures, which 'digits' is not"
        ):
            data.load("digits", data_dir=digits_dir, labels=way)


def test_a_run_says_once_what_it_does_not_use(whole, tmp_path):
    class Notes:
        def __init__(self):
            self.said = []

        def say(self, message):
            self.said.append(message)

    def enter(source, workdir):
        notes = Notes()
        with loop.entered(loop.prepare(SMALL, source=source), workdir, notes):
            pass
        return [line for line in notes.said if "this run uses" in line]

    assert enter(whole, tmp_path / "run") == [
        f"{tmp_path}/a.npz: 6 images of 2 x 2 x 1, labels of 6 classes (0, 1, 2, ..., 5), captions; this run uses the "
        "images only"
    ]
    assert enter(whole, tmp_path / "run") == []
    assert enter(data.load(str(tmp_path / "a.npz"), labels="none"), tmp_path / "other") == []
