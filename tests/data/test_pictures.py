"""Pictures that others read: ADM's arr_0 and arr_1, folders of numbered PNGs, and our own readers."""

import re

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ddpm_jax import cli, data, models, pictures
from ddpm_jax.data.records import from_arrays
from ddpm_jax.host import picture_files
from ddpm_jax.host.picture_output import Drawing, Output
from tests.cli.test_cli_interop import write
from tests.data.common import read

IMAGES = np.random.RandomState(5).randint(0, 256, (12, 8, 8, 3), np.uint8)


@pytest.fixture(scope="module")
def with_classes(tmp_path_factory):
    """A network with 3 classes."""
    model = models.UNet(
        channels=4, channel_multipliers=(1,), num_res_blocks=1, attention_resolutions=(), num_groups=2, num_classes=3
    )
    folder = tmp_path_factory.mktemp("home") / "folder"
    return write(folder, model, (8, 8, 3), y=jnp.zeros(1, jnp.int32))


def test_a_sample_is_what_others_read(with_classes, tmp_path, capsys, monkeypatch):
    """As .npz and as a folder: the same pictures, in order over batches, and the classes in turn."""
    drawn = [pictures.Drawn(IMAGES[:3], []), pictures.Drawn(IMAGES[3:4], [])]
    monkeypatch.setattr(pictures, "batches", lambda *arguments, **options: iter(drawn))
    options = [str(with_classes), "--num-steps", "2", "-n", "4", "--batch-size", "3"]
    cli.main(["sample", *options, "--out", f"{tmp_path}/a.npz"])
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        assert set(file.files) == {"images", "arr_0", "arr_1"}
        found, labels = file["arr_0"], file["arr_1"]
        np.testing.assert_array_equal(file["images"], found)
    np.testing.assert_array_equal(found, IMAGES[:4])
    assert found.dtype == np.uint8
    assert labels.dtype == np.int64 and labels.tolist() == [0, 1, 2, 0]
    cli.main(["sample", *options, "--out", f"{tmp_path}/b.d/"])
    assert capsys.readouterr().out.splitlines()[-1] == f"4 images: {tmp_path}/b.d/"
    assert [path.name for path in sorted((tmp_path / "b.d").iterdir())] == [f"00000{i}.png" for i in range(4)]
    for place in ("a.npz", "b.d"):  # our own reader
        images, said = read(tmp_path / place)
        np.testing.assert_array_equal(images, found)
        assert said == []
    with pytest.raises(SystemExit):
        cli.main(["sample", *options, "--out", f"{tmp_path}/b.d"])
    assert re.search(r"the folder --out .*b\.d is not empty", capsys.readouterr().err)
    assert len(list((tmp_path / "b.d").iterdir())) == 4


def test_without_classes_there_are_no_labels(tmp_path):
    picture_files.save_npz(tmp_path / "a.npz", lambda: [IMAGES[:5], IMAGES[5:]], len(IMAGES))
    with np.load(tmp_path / "a.npz") as file:
        assert set(file.files) == {"images", "arr_0"}
        np.testing.assert_array_equal(file["images"], IMAGES)


@pytest.mark.parametrize("out", ["new", "new/", "a/b/c", "dots.d/", "empty", "empty.png", "x.npz/"])
def test_folders(out, tmp_path):
    """What ends in a slash, has no ending, or is one already."""
    for name in ("empty", "empty.png"):
        (tmp_path / name).mkdir()
    drawing = Drawing(Output(f"{tmp_path}/{out}"), {}, 12, 12)
    drawing.add(IMAGES[..., :1])
    drawing.finish(None)
    paths = sorted((tmp_path / out).iterdir())
    assert [path.name for path in paths] == [f"{i:06d}.png" for i in range(12)]
    for path, image in zip(paths, IMAGES, strict=True):
        with Image.open(path) as picture:
            assert picture.mode == "L"
            np.testing.assert_array_equal(np.array(picture), image[..., 0])


def test_what_is_refused_before_anything_is_drawn(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    (tmp_path / "file").write_text("kept")
    for out, message in {
        "full": "is not empty", "full/": "is not empty", "file": "is a file", "x.gif": r"'\.gif'.*\.png, \.npz"
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=message):
            Output(f"{tmp_path}/{out}")
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("channels", [2, 5, 8])
def test_other_channels_are_planes_side_by_side(tmp_path, channels):
    """In a picture of all and in one of each."""
    pictures = np.random.RandomState(0).randint(0, 256, (4, 48, 50, channels)).astype(np.uint8)
    for out in ("all.png", "each/"):
        drawing = Drawing(Output(f"{tmp_path}/{out}"), {}, 4, 4)
        drawing.add(pictures)
        drawing.finish(None)
    with Image.open(tmp_path / "all.png") as picture, Image.open(tmp_path / "each" / "000003.png") as last:
        everything, one = np.array(picture), np.array(last)
    assert one.shape == (48, 51 * channels - 1) and everything.shape == (2 * 49 + 1, 2 * 51 * channels + 1)
    for channel in range(channels):
        left = 51 * channel
        np.testing.assert_array_equal(one[:, left : left + 50], pictures[3, :, :, channel])
        np.testing.assert_array_equal(
            everything[50:98, 51 * channels + 1 :][:, left : left + 50], pictures[3, ..., channel]
        )
    assert (one[:, 50::51] == 255).all()


@pytest.mark.campaign
@pytest.mark.usefixtures("optax_promotes")
def test_images_of_any_number_of_channels_are_trained_on_and_drawn(tmp_path, monkeypatch, capsys):
    """The planes side by side, which is said once, by `sample` too."""
    channels = 5
    pixels = np.random.RandomState(0).randint(0, 256, (16, 8, 8, channels)).astype(np.uint8)
    source = from_arrays("planes", {"image": pixels})
    monkeypatch.setattr(data, "load", lambda name, **options: source)
    small = "--model.channels 4 --model.channel-multipliers 1 --model.attention-resolutions --model.num-groups 2"
    steps = "--train.batch-size 8 --sample.num-images 4 --sample.num-steps 2 --schedule.num-timesteps 8"
    monkeypatch.chdir(tmp_path)
    said = f"pictures show the {channels} channels of an image as grey planes side by side"
    for n, times in ((1, 1), (2, 0)):
        cli.main(["train", "--workdir", "run", *small.split(), *steps.split(), "--train.num-steps", str(n)])
        assert capsys.readouterr().out.count(said) == times
    with Image.open("run/samples.png") as picture:
        assert picture.mode == "L" and picture.size[0] == 2 * (6 * 8 * channels + channels) + 1
    cli.main(["sample", "run", "--num-steps", "2", "-n", "2", "--out", "each/"])
    assert capsys.readouterr().out.count(said) == 1
    cli.main(["sample", "run", "--num-steps", "2", "-n", "2", "--out", "all.npz"])
    assert said not in capsys.readouterr().out and np.load("all.npz")["images"].shape == (2, 8, 8, channels)
