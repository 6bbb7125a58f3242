"""Reading images and drawing batches: identities, the originals' numbers, every error message."""

import hashlib
import io
import itertools
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddpm_jax import data
from ddpm_jax.data import batches, images, prepared, records

ROOT = Path(__file__).parent.parent.parent
TFDS_DIR = ROOT.parent / "shared" / "tfds"
RNG_SEED = 20


def philox(key, block, stream, rounds=10):
    """Four 64-bit words of Philox4x64 as in Salmon et al. 2011 ("Parallel random numbers: as easy as 1, 2, 3")."""
    mask = 2**64 - 1
    c, k = [block, 0, 0, stream], list(key)
    for _ in range(rounds):
        left, right = 0xD2E7470EE14C6C93 * c[0], 0xCA5A826395121157 * c[2]
        c = [(right >> 64) ^ c[1] ^ k[0], right & mask, (left >> 64) ^ c[3] ^ k[1], left & mask]
        k = [(k[0] + 0x9E3779B97F4A7C15) & mask, (k[1] + 0xBB67AE8584CAA73B) & mask]
    return c


def reference_words(seed, number, stream, count):
    # NumPy's counter is advanced before the first block, so it starts at 1.
    blocks = (philox((seed, number), block, stream) for block in itertools.count(1))
    return list(itertools.islice(itertools.chain.from_iterable(blocks), count))


def reference_order(seed, epoch, n):
    words = reference_words(seed, epoch, 0, n)
    return sorted(range(n), key=lambda i: words[i])


@pytest.fixture(scope="module")
def digits(digits_dir):
    return data.load("digits", data_dir=digits_dir)


@pytest.fixture
def pictures():
    """uint8 [6, 10, 7, 3] noise."""
    return np.random.RandomState(RNG_SEED).randint(0, 256, (6, 10, 7, 3), np.uint8)


def write_folder(folder, array, ending=".png"):
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(array):
        Image.fromarray(image).save(folder / f"{i:03}{ending}", lossless=True)  # only WebP looks at it
    return folder


# Batches


@pytest.mark.parametrize("batch_size", [1, 3, 7, 10, 11, 25])
def test_every_epoch_is_a_permutation(batch_size):
    n, epochs = 10, 7
    steps = -(-n * epochs // batch_size)
    stream = np.concatenate([data.batch_indices(3, k, batch_size, n) for k in range(steps)])[: n * epochs]
    rows = stream.reshape(epochs, n)
    assert (np.sort(rows, axis=1) == np.arange(n)).all()
    assert len({tuple(row) for row in rows}) == epochs


@pytest.mark.parametrize(("seed", "step", "batch_size", "n"), [(0, 0, 5, 5), (7, 2, 4, 9), (2**64 - 1, 5, 40, 13)])
def test_indices_follow_an_independent_philox(seed, step, batch_size, n):
    positions = range(step * batch_size, (step + 1) * batch_size)
    expected = [reference_order(seed, p // n, n)[p % n] for p in positions]
    indices = data.batch_indices(seed, step, batch_size, n)
    assert indices.dtype == np.int64
    assert indices.tolist() == expected


def test_indices_are_those_of_every_earlier_version():
    # From `reference_order` above, in Python integers; runs made with earlier versions resume on these.
    assert data.batch_indices(0, 0, 8, 8).tolist() == [0, 2, 1, 5, 4, 3, 6, 7]
    assert data.batch_indices(42, 1000, 8, 1797).tolist() == [1134, 1187, 242, 274, 673, 1603, 295, 62]


def test_a_batch_does_not_depend_on_what_was_asked_before():
    forward = [data.batch_indices(1, k, 6, 20).tolist() for k in range(12)]
    batches._permutation.cache_clear()
    backward = [data.batch_indices(1, k, 6, 20).tolist() for k in reversed(range(12))]
    assert forward == backward[::-1]
    code = "from ddpm_jax import data; print(data.batch_indices(1, 11, 6, 20).tolist())"
    output = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert output.stdout.strip() == str(forward[11])


def test_seeds_and_streams_differ():
    orders = {tuple(data.batch_indices(seed, 0, 50, 50)) for seed in range(20)}
    assert len(orders) == 20
    assert not np.array_equal(batches._words(0, 1, 2, 4), batches._words(1, 1, 2, 4))


def test_permutations_are_uniform():
    # 24 permutations of 4, each expected 400 times with standard deviation 19.6.
    counts = Counter(tuple(data.batch_indices(5, k, 4, 4).tolist()) for k in range(9600))
    assert len(counts) == 24
    assert max(abs(count - 400) for count in counts.values()) < 5 * 19.6


@pytest.mark.parametrize("flip", [False, True])
def test_shares_of_a_batch_make_up_the_batch(digits, flip):
    read = lambda **options: data.batch(digits, 4, 13, 150, flip=flip, **options)["image"]
    whole = read()
    shares = [read(rows=slice(start, start + 50)) for start in (0, 50, 100)]
    np.testing.assert_array_equal(np.concatenate(shares), whole)
    if not flip:
        np.testing.assert_array_equal(whole, digits.images(data.batch_indices(4, 13, 150, len(digits))))


def test_flips_are_the_words_of_their_own_stream(digits):
    plain = data.batch(digits, 9, 3, 40)["image"]
    flipped = data.batch(digits, 9, 3, 40, flip=True)["image"]
    heads = [word >> 63 for word in reference_words(9, 3, 1, 40)]
    expected = [image[:, ::-1] if head else image for image, head in zip(plain, heads, strict=True)]
    np.testing.assert_array_equal(flipped, np.stack(expected))


def test_half_of_the_images_are_flipped():
    arrow = np.zeros((1, 2, 2, 1), np.uint8)
    arrow[:, :, 1] = 255
    source = records.from_arrays("arrow", {"image": arrow})
    steps, batch_size = 100, 64
    left = sum(
        (data.batch(source, 0, k, batch_size, flip=True)["image"][:, 0, 0, 0] == 255).sum() for k in range(steps)
    )
    draws = steps * batch_size
    assert abs(left / draws - 0.5) < 5 * 0.5 / draws**0.5
    assert (source.images([0]) == arrow).all(), "flipping wrote into the data set"


def test_the_caller_owns_what_it_is_given(tmp_path):
    np.save(tmp_path / "set.npy", np.ones((3, 2, 2, 1), np.uint8))
    ones = records.from_arrays("ones", {"image": np.ones((3, 2, 2, 1), np.uint8)})
    for source in (data.load(str(tmp_path / "set.npy")), ones):
        for indices in ([1], [0, 1, 2]):
            given = source.images(indices)
            assert type(given) is np.ndarray
            given[:] = 9
            assert (source.images(indices) == 1).all()


def test_batch_arguments_are_checked():
    with pytest.raises(ValueError, match=r"seed must lie in \[0, 2\^64\), got -1"):
        data.batch_indices(-1, 0, 4, 8)
    with pytest.raises(ValueError, match=r"step must lie in \[0, 2\^32\), got -2"):
        data.batch_indices(0, -2, 4, 8)
    with pytest.raises(ValueError, match="must be at least 1, got 0 and 8"):
        data.batch_indices(0, 0, 0, 8)
    with pytest.raises(ValueError, match="depth must be at least 1, got 0"):
        data.prefetch(abs, [1], depth=0)


# Prefetching


def prefetch_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_prefetch_keeps_the_order(depth):
    def slow_when_even(step):
        time.sleep(0.01 if step % 2 == 0 else 0)
        return step * step

    assert list(data.prefetch(slow_when_even, range(10), depth=depth)) == [k * k for k in range(10)]
    assert prefetch_threads() == []


def test_prefetch_computes_ahead_but_only_depth():
    begun, wanted = [], threading.Event()

    def function(step):
        begun.append(step)
        if len(begun) == 4:
            wanted.set()
        return step

    stream = data.prefetch(function, itertools.count(), depth=3)
    assert next(stream) == 0
    assert wanted.wait(10), "steps 1 to 3 were not computed while step 0 was used"
    time.sleep(0.05)
    assert sorted(begun) == [0, 1, 2, 3]
    stream.close()
    assert prefetch_threads() == []


def test_prefetch_raises_where_the_result_would_have_come():
    stream = data.prefetch(lambda step: 6 // (2 - step), range(5))
    assert [next(stream), next(stream)] == [3, 6]
    with pytest.raises(ZeroDivisionError):
        next(stream)
    assert prefetch_threads() == []


def test_prefetched_batches_are_the_batches(digits):
    stream = data.prefetch(lambda step: data.batch(digits, 0, step, 100, flip=True), range(5, 25), depth=4)
    for step, record in zip(range(5, 25), stream, strict=True):
        np.testing.assert_array_equal(record["image"], data.batch(digits, 0, step, 100, flip=True)["image"])


# The embedded digits


def test_digits_are_those_of_scikit_learn(digits):
    from sklearn.datasets import load_digits

    values = load_digits(return_X_y=True)[0].reshape(-1, 8, 8)
    assert digits.image_shape == (8, 8, 1)
    # Integers: round(v * 255 / 16) = floor(v * 255 / 16 + 1/2), and no v in 0..16 falls on a half but 8 (127.5 -> 128).
    expected = (values.astype(np.int64) * 510 + 16) // 32
    np.testing.assert_array_equal(digits.images(np.arange(1797))[..., 0], expected)


def test_digits_are_prepared_once(digits_dir):
    files = sorted((digits_dir / "digits" / "1.0.0").iterdir())
    before = [file.stat().st_mtime_ns for file in files]
    data.load("digits", data_dir=digits_dir)
    assert files and [file.stat().st_mtime_ns for file in files] == before


def test_an_interrupted_preparation_is_not_used(tmp_path):
    code = """
import itertools, os, sys
from ddpm_jax import data
from ddpm_jax.data.digits.digits_dataset_builder import Builder
whole = Builder._generate_examples
def killed(self):
    yield from itertools.islice(whole(self), 900)
    os._exit(9)
Builder._generate_examples = killed
data.load("digits", data_dir=sys.argv[1])
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT)
    assert done.returncode == 9
    assert [path.name.split(".")[0] for path in (tmp_path / "digits").iterdir()] == ["incomplete"]
    for path in (tmp_path / "digits").iterdir():
        (path / "features.json").write_text("{}")  # as if killed just before the rename
    assert prepared.prepared_names(tmp_path) == []
    assert len(data.load("digits", data_dir=tmp_path)) == 1797


def test_a_damaged_preparation_is_named(tmp_path):
    (tmp_path / "digits" / "1.0.0").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"digits.1\.0\.0 is not a complete TFDS data set; delete it"):
        data.load("digits", data_dir=tmp_path)


def test_two_processes_may_prepare_at_once(tmp_path, monkeypatch):
    from ddpm_jax.data.digits.digits_dataset_builder import Builder

    whole = Builder._generate_examples

    def overtaken(self):
        monkeypatch.setattr(Builder, "_generate_examples", whole)
        assert len(data.load("digits", data_dir=tmp_path)) == 1797  # the other process, quicker
        yield from whole(self)

    monkeypatch.setattr(Builder, "_generate_examples", overtaken)
    assert len(data.load("digits", data_dir=tmp_path)) == 1797
    assert [path.name for path in (tmp_path / "digits").iterdir()] == ["1.0.0"]


def test_a_failed_preparation_raises_its_own_error(tmp_path, monkeypatch):
    from ddpm_jax.data.digits.digits_dataset_builder import Builder

    def broken(self):
        yield from ()
        raise OSError("disk on fire")

    monkeypatch.setattr(Builder, "_generate_examples", broken)
    with pytest.raises(OSError, match="disk on fire"):
        data.load("digits", data_dir=tmp_path)


def test_first_use_is_silent_and_needs_no_tensorflow(tmp_path):
    code = """
import sys
import ddpm_jax.data
slow = {"tensorflow_datasets", "PIL", "sklearn", "jax"} & set(sys.modules)
assert not slow, slow
source = ddpm_jax.data.load("digits")
assert len(source) == 1797 and "tensorflow" not in sys.modules
"""
    environment = os.environ | {"TFDS_DATA_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "digits" / "1.0.0" / "features.json").exists()


# TFDS sets


def identity(source):
    """First 8 hex digits of the sha256 over the sorted sha256 hex digests of the images."""
    digests = sorted(hashlib.sha256(image.tobytes()).hexdigest() for image in source.images(np.arange(len(source))))
    return hashlib.sha256("".join(digests).encode()).hexdigest()[:8]


@pytest.mark.parametrize(
    ("name", "split", "count", "shape", "expected"),
    [
        ("mnist", "test", 10000, (28, 28, 1), "c6dfc938"),
        ("cifar10", "test", 10000, (32, 32, 3), "d2c9e872"),
        pytest.param("mnist", "train", 60000, (28, 28, 1), "0d1f388f", marks=pytest.mark.slow),
        pytest.param("cifar10", "train", 50000, (32, 32, 3), "21235a67", marks=pytest.mark.slow),
    ],
)
def test_prepared_sets_are_the_originals(name, split, count, shape, expected):
    if not (TFDS_DIR / name).is_dir():
        pytest.skip(f"{name} is not prepared in {TFDS_DIR}")
    source = data.load(name, data_dir=TFDS_DIR, split=split)
    assert (len(source), source.image_shape) == (count, shape)
    assert identity(source) == expected


def test_a_set_above_the_memory_bound_reads_the_same(digits, digits_dir, monkeypatch):
    monkeypatch.setattr(records, "MEMORY_BOUND", 1797 * 64 - 1)
    progress = []
    lazy = data.load("digits", data_dir=digits_dir, progress=lambda *counts: progress.append(counts))
    assert progress == []
    read = lambda source: data.batch(source, 0, 3, 64, flip=True)["image"]
    np.testing.assert_array_equal(read(lazy), read(digits))
    monkeypatch.setattr(records, "MEMORY_BOUND", 1797 * 64)
    data.load("digits", data_dir=digits_dir, progress=lambda *counts: progress.append(counts))
    assert progress == [(1024, 1797), (1797, 1797)]


def test_a_split_may_be_a_part(digits, digits_dir):
    part = data.load("digits", data_dir=digits_dir, split="train[100:200]")
    np.testing.assert_array_equal(part.images(np.arange(100)), digits.images(np.arange(100, 200)))


@pytest.fixture(scope="module")
def odd_sets(tmp_path_factory):
    """A TFDS directory with sets that cannot, or only just, be used."""
    import tensorflow_datasets as tfds

    def png(*shape):
        encoded = io.BytesIO()
        Image.fromarray(np.full(shape, 7, np.uint8)).save(encoded, "png")
        encoded.seek(0)
        return encoded

    def prepare(name, features, examples, file_format="array_record"):
        class Base(tfds.core.GeneratorBasedBuilder, skip_registration=True):
            VERSION = tfds.core.Version("1.0.0")
            pkg_dir_path = tfds.core.Path(__file__).parent

            def _info(self):
                return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

            def _split_generators(self, dl_manager):
                return {"train": self._generate_examples(), "valid": self._generate_examples()}

            def _generate_examples(self):
                yield from enumerate(examples)

        builder = type(name, (Base,), {"name": name}, skip_registration=True)(
            data_dir=directory, file_format=file_format
        )
        builder.download_and_prepare()

    directory = tmp_path_factory.mktemp("odd")
    tensor = tfds.features.Tensor
    prepare("float_set", {"image": tensor(shape=(2, 2, 1), dtype=np.float32)}, [{"image": np.zeros((2, 2, 1), "f")}])
    prepare(
        "text_set",
        {"text": tfds.features.Text(), "label": tensor(shape=(), dtype=np.int64)},
        [{"text": "a", "label": 1}],
    )
    prepare("flat_set", {"image": tensor(shape=(4,), dtype=np.uint8)}, [{"image": np.zeros(4, np.uint8)}])
    prepare("grey_set", {"image": tensor(shape=(2, 3), dtype=np.uint8)}, [{"image": np.full((2, 3), 9, np.uint8)}])
    photo = tfds.features.Image(shape=(None, None, 3))
    prepare("photo_set", {"image": photo}, [{"image": png(8, 8, 3)}, {"image": png(6, 10, 3)}])
    return directory


def test_tfds_images_of_several_sizes_need_image_size(odd_sets):
    with pytest.raises(ValueError, match=r"image 1 of photo_set has shape .* but image 0 .*; pass image_size"):
        data.load("photo_set", data_dir=odd_sets)
    source = data.load("photo_set", data_dir=odd_sets, image_size=3)
    np.testing.assert_array_equal(source.images([1, 0]), np.full((2, 3, 3, 3), 7))


def test_grey_tensors_get_a_channel(odd_sets):
    np.testing.assert_array_equal(data.load("grey_set", data_dir=odd_sets).images([0]), np.full((1, 2, 3, 1), 9))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("float_set", "the images of 'float_set' are float32; allowed is uint8"),
        ("text_set", "'text_set' has no feature 'image'; its features are .*label"),
        ("flat_set", r"the images of 'flat_set' have shape \(4,\); allowed are \[H, W\] and \[H, W, C\]"),
    ],
)
def test_tfds_sets_without_usable_images(odd_sets, name, message):
    with pytest.raises(ValueError, match=message):
        data.load(name, data_dir=odd_sets)


def test_files_that_only_tensorflow_reads_are_refused(odd_sets, tmp_path):
    shutil.copytree(odd_sets / "grey_set", tmp_path / "grey_set")
    info = tmp_path / "grey_set" / "1.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(
        ValueError, match=r"'grey_set' in .* is stored as tfrecord; without TensorFlow only array_record"
    ):
        data.load("grey_set", data_dir=tmp_path)


def test_unknown_names_and_places(digits_dir, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=f"no TFDS data set 'mnist' in {digits_dir}; the data sets there: digits"
    ):
        data.load("mnist", data_dir=digits_dir)
    with pytest.raises(FileNotFoundError, match="the data sets there: none"):
        data.load("mnist", data_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"data_dir .*nowhere is not a folder"):
        data.load("mnist", data_dir=tmp_path / "nowhere")
    with pytest.raises(
        ValueError, match=r"unknown data set 'mnits': neither a TFDS name .nearest: 'mnist'. nor an exist"
    ):
        data.load("mnits")
    with pytest.raises(ValueError, match=r"unknown data set 'digit': .*nearest: 'digits'"):
        data.load("digit")
    for split in ("test", "train[5:5]", "train[:80"):
        message = f"no images in the split '{re.escape(split)}' of 'digits'; its splits are train"
        with pytest.raises(ValueError, match=message):
            data.load("digits", data_dir=digits_dir, split=split)
    with pytest.raises(ValueError, match=r"image_size must be a whole number in \[1, 16384\], got 0"):
        data.load("digits", data_dir=digits_dir, image_size=0)


@pytest.mark.skipif(prepared._has_tensorflow(), reason="TensorFlow is installed, so TFDS would download")
def test_a_set_that_only_tensorflow_can_prepare_fails_at_once(tmp_path):
    code = "from ddpm_jax import data; data.load('cifar10')"
    environment = os.environ | {"TFDS_DATA_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ValueError: 'cifar10' is not in {tmp_path}, and preparing it needs TensorFlow")
    assert "tfds build cifar10 --file_format=array_record" in last


def test_a_registered_set_is_prepared_on_first_use(tmp_path):
    code = """
import numpy as np
import tensorflow_datasets as tfds
from ddpm_jax import data
from ddpm_jax.data import prepared

assert "digits" in prepared.known_names()

class TinySet(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    def _info(self):
        features = {"image": tfds.features.Tensor(shape=(2, 2, 1), dtype=np.uint8)}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))
    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}
    def _generate_examples(self):
        yield 0, {"image": np.full((2, 2, 1), 5, np.uint8)}

for _ in range(2):
    assert (data.load("tiny_set").images([0]) == 5).all()
"""
    script = tmp_path / "script.py"
    script.write_text(code)
    environment = os.environ | {"TFDS_DATA_DIR": str(tmp_path / "sets"), "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, script], cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert prepared.prepared_names(tmp_path / "sets") == ["tiny_set"]


# Folders and arrays


@pytest.mark.parametrize("ending", [".png", ".bmp", ".webp", ".PNG"])
def test_a_folder_is_the_array_of_its_pictures(tmp_path, pictures, ending):
    folder = tmp_path / "set"
    write_folder(folder / "b", pictures[3:], ending)
    write_folder(folder / "a" / "deep", pictures[:3], ending)
    (folder / "a" / "notes.txt").write_text("not a picture")
    (folder / ".hidden.png").write_text("not a picture")
    np.save(tmp_path / "set.npy", pictures)
    for name in (str(folder), str(tmp_path / "set.npy")):
        source = data.load(name)
        assert (len(source), source.image_shape) == (6, (10, 7, 3))
        np.testing.assert_array_equal(source.images([5, 0, 0, 2]), pictures[[5, 0, 0, 2]])


def test_jpeg_and_gif_are_read(tmp_path):
    for name, mode in (("a.jpg", "RGB"), ("b.jpeg", "L"), ("c.gif", "L")):
        Image.new(mode, (16, 16), 200 if mode == "L" else (200, 200, 200)).save(tmp_path / name)
    pixels = data.load(str(tmp_path)).images([0, 1, 2]).astype(int)
    assert pixels.shape == (3, 16, 16, 3)
    assert abs(pixels - 200).max() <= 1  # JPEG is lossy


def test_grey_folders_have_one_channel(tmp_path, pictures):
    grey = pictures[..., 0]
    write_folder(tmp_path / "grey", grey)
    Image.fromarray(grey[0] > 127).save(tmp_path / "grey" / "bits.png")
    source = data.load(str(tmp_path / "grey"))
    assert source.image_shape == (10, 7, 1)
    np.testing.assert_array_equal(source.images(np.arange(6))[..., 0], grey)
    np.testing.assert_array_equal(source.images([6])[0, ..., 0], (grey[0] > 127) * 255)
    write_folder(tmp_path / "grey" / "colour", pictures[:1])
    mixed = data.load(str(tmp_path / "grey"))
    assert mixed.image_shape == (10, 7, 3)
    np.testing.assert_array_equal(mixed.images([1]), np.repeat(grey[1][None, ..., None], 3, axis=-1))


def test_the_camera_orientation_is_applied(tmp_path, pictures):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side: turn clockwise to show
    Image.fromarray(np.rot90(pictures[0])).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(data.load(str(tmp_path)).images([0])[0], pictures[0])


@pytest.mark.parametrize("kind", ["npy", "npz", "npz_only"])
def test_arrays(tmp_path, pictures, kind):
    path = tmp_path / f"set.{kind[:3]}"
    if kind == "npy":
        np.save(path, pictures)
    elif kind == "npz":
        np.savez(path, labels=np.zeros(6), images=pictures)
    else:
        np.savez(path, pictures)
    source = data.load(str(path))
    np.testing.assert_array_equal(source.images(np.arange(6)), pictures)
    np.save(tmp_path / "grey.npy", pictures[..., 1])
    np.testing.assert_array_equal(data.load(str(tmp_path / "grey.npy")).images([2])[0, ..., 0], pictures[2, ..., 1])


def test_a_mapped_array_reads_the_same(tmp_path, pictures, monkeypatch):
    monkeypatch.setattr(records, "MEMORY_BOUND", 0)
    np.save(tmp_path / "set.npy", pictures)
    write_folder(tmp_path / "set", pictures)
    for name in ("set.npy", "set"):
        source = data.load(str(tmp_path / name))
        np.testing.assert_array_equal(source.images([4, 1]), pictures[[4, 1]])
        small = data.load(str(tmp_path / name), image_size=5)
        np.testing.assert_array_equal(small.images([4]), images.fit(pictures[4], 5)[None])
    data.batch(data.load(str(tmp_path / "set.npy")), 0, 0, 6, flip=True)
    np.testing.assert_array_equal(np.load(tmp_path / "set.npy"), pictures)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_fit_closed_forms(channels):
    random = np.random.RandomState(RNG_SEED)
    image = random.randint(0, 256, (16, 16, channels), np.uint8)
    # Half the size: means of 2x2 boxes, halves rounded up along the rows and again along the columns.
    rows = (image[:, ::2].astype(int) + image[:, 1::2] + 1) // 2
    np.testing.assert_array_equal(images.fit(image, 8), (rows[::2] + rows[1::2] + 1) // 2)
    # A quarter: twice half. The same size: only the crop.
    np.testing.assert_array_equal(images.fit(image, 4), images.fit(images.fit(image, 8), 4))
    np.testing.assert_array_equal(images.fit(image, 16), image)
    wide = random.randint(0, 256, (8, 13, channels), np.uint8)
    np.testing.assert_array_equal(images.fit(wide, 8), wide[:, 2:10])
    np.testing.assert_array_equal(images.fit(wide.transpose(1, 0, 2), 8), wide.transpose(1, 0, 2)[2:10])
    # Bicubic interpolation keeps constants and, away from the border, straight lines.
    assert (images.fit(np.full((30, 21, channels), 77, np.uint8), 9) == 77).all()
    ramp = np.broadcast_to((np.arange(24) * 4)[None, :, None], (24, 24, channels)).astype(np.uint8)
    line = (np.arange(16) + 0.5) * 1.5 * 4 - 2
    assert abs(images.fit(ramp, 16)[:, 2:-2].astype(float) - line[2:-2, None]).max() <= 0.5 + 1e-6


def test_image_size_applies_to_every_kind(digits_dir, tmp_path, pictures):
    np.save(tmp_path / "set.npy", pictures)
    write_folder(tmp_path / "set", pictures)
    expected = np.stack([images.fit(image, 4) for image in pictures])
    for name in ("set", "set.npy"):
        source = data.load(str(tmp_path / name), image_size=4)
        assert source.image_shape == (4, 4, 3)
        np.testing.assert_array_equal(source.images(np.arange(6)), expected)
    doubled = data.load("digits", data_dir=digits_dir, image_size=16)
    assert doubled.image_shape == (16, 16, 1)


def test_folder_errors(tmp_path, pictures):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no image below the folder .*empty; accepted endings are \.png, \.jpg"):
        data.load(str(tmp_path / "empty"))
    with pytest.raises(FileNotFoundError, match=r"no such file or folder: .*nowhere"):
        data.load(str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="no such file or folder: nowhere"):
        data.load("./nowhere")
    with pytest.raises(FileNotFoundError, match=r"no such file or folder: .*nowhere\.npy"):
        data.load(str(tmp_path / "nowhere.npy"))
    folder = write_folder(tmp_path / "set", pictures)
    Image.fromarray(pictures[0, :5]).save(folder / "004.png")
    with pytest.raises(ValueError, match=r"004\.png is 7x5 pixels, but .*000\.png is 7x10; pass image_size"):
        data.load(str(folder))
    assert len(data.load(str(folder), image_size=5)) == 6
    with pytest.raises(ValueError, match="no split 'test'; a folder or an array file has only the split 'train'"):
        data.load(str(folder), split="test")
    with pytest.raises(
        ValueError, match=r"data_dir .* is for TFDS data sets, but .*set' is a path; leave data_dir out"
    ):
        data.load(str(folder), data_dir=tmp_path)


def test_unreadable_pictures_are_named(tmp_path, pictures):
    folder = write_folder(tmp_path / "set", pictures)
    whole = (folder / "003.png").read_bytes()
    for content in (b"", b"not a picture", whole[: len(whole) // 2]):
        (folder / "003.png").write_bytes(content)
        with pytest.raises(ValueError, match=r"cannot read the image .*003\.png: "):
            data.load(str(folder))
    Image.fromarray(pictures[0, ..., 0].astype(np.uint16) * 257).save(folder / "003.png")
    with pytest.raises(ValueError, match=r"003\.png has pixels of mode 'I;16'; allowed are pictures with 8 bits"):
        data.load(str(folder))


def test_array_errors(tmp_path, pictures):
    path = tmp_path / "set.npy"
    np.save(path, pictures / 255)
    with pytest.raises(ValueError, match=r"set\.npy holds float64; allowed is uint8, values 0 to 255"):
        data.load(str(path))
    np.save(path, pictures[0, 0])
    with pytest.raises(ValueError, match=r"shape \(7, 3\); allowed are \[N, H, W, C\] and \[N, H, W\]"):
        data.load(str(path))
    np.save(path, pictures[:0])
    with pytest.raises(ValueError, match=r"shape \(0, 10, 7, 3\); allowed are .* none of them 0"):
        data.load(str(path))
    path.write_bytes(b"not an array")
    with pytest.raises(ValueError, match=r"cannot read .*set\.npy as a NumPy file"):
        data.load(str(path))
    np.savez(tmp_path / "two.npz", a=pictures, b=pictures)
    with pytest.raises(
        ValueError, match=r"two\.npz as a NumPy file: it holds a, b; one is needed, or one called images"
    ):
        data.load(str(tmp_path / "two.npz"))


def test_indices_outside_the_set_are_refused(digits):
    for index in (-1, 1797):
        with pytest.raises(IndexError, match=f"image {index} asked of digits, which has images 0 to 1796"):
            digits.images([0, index])


def test_a_folder_called_like_a_set_needs_a_separator(digits_dir, tmp_path, pictures, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("digits", "photos"):
        write_folder(tmp_path / name, pictures)
    assert data.load("digits", data_dir=digits_dir).image_shape == (8, 8, 1)
    assert data.load("./digits").image_shape == (10, 7, 3)
    assert data.load("photos").image_shape == (10, 7, 3)
