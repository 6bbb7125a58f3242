"""Pictures that others read: ADM's arr_0 and arr_1, folders of numbered PNGs, and our own readers."""

import re

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ddpm_jax import cli, models, pictures
from ddpm_jax.host import picture_files
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
    monkeypatch.setattr(pictures, "pictures", lambda *arguments: iter([IMAGES[:3], IMAGES[3:4]]))
    options = [str(with_classes), "--num-steps", "2", "-n", "4"]
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
    picture_files.save_npz(tmp_path / "a.npz", IMAGES)
    with np.load(tmp_path / "a.npz") as file:
        assert set(file.files) == {"images", "arr_0"}


@pytest.mark.parametrize("out", ["new", "new/", "a/b/c", "dots.d/", "empty", "empty.png", "x.npz/"])
def test_folders(out, tmp_path):
    """What ends in a slash, has no ending, or is one already."""
    for name in ("empty", "empty.png"):
        (tmp_path / name).mkdir()
    picture_files.saver(f"{tmp_path}/{out}")(IMAGES[..., :1], None)
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
            picture_files.saver(f"{tmp_path}/{out}")
    assert (tmp_path / "file").read_text() == "kept"
    with pytest.raises(ValueError, match=r"1 to 4 channels, but the images have 8: --out FILE\.npz"):
        picture_files.save_grid(tmp_path / "a.png", np.zeros((2, 4, 4, 8), np.uint8))
