"""Pictures that become files while they are drawn, by calls that are stopped."""

import json
import os
import re
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.host import picture_files
from ddpm_jax.host.picture_output import Drawing, Output

IMAGES = np.random.RandomState(6).randint(0, 256, (10, 4, 4, 3), np.uint8)
SETTINGS = {"step": 6000, "--seed": 0, "--timesteps": (9, 0)}
PLACES = ("a.npz", "a.png", "folder", "folder.d/")


def draw(out, settings=SETTINGS, stop=10, images=IMAGES, batch_size=4):
    """A call that is stopped before batch `stop`."""
    return draw_in(Output(str(out)), settings, stop, images, batch_size)


def draw_in(output, settings=SETTINGS, stop=10, images=IMAGES, batch_size=4):
    with output.alone(pytest.fail):
        drawing = Drawing(output, settings, len(images), batch_size)
        first = drawing.first
        for at in range(first, len(images), batch_size):
            if at >= stop:
                return first
            drawing.add(images[at : at + batch_size])
        drawing.finish(None)
        return first


def content(place):
    """Every byte, by path."""
    paths = [place] if place.is_file() else sorted(place.rglob("*"))
    return {str(path.relative_to(place.parent)): path.read_bytes() for path in paths if path.is_file()}


@pytest.mark.parametrize("place", PLACES)
def test_a_call_that_was_stopped_goes_on(tmp_path, place):
    """Batch by batch: in the end the same bytes as of one call, and nothing beside them."""
    (tmp_path / "stopped").mkdir()
    draw(f"{tmp_path}/whole/{place}")
    assert [draw(f"{tmp_path}/stopped/{place}", stop=stop) for stop in (0, 4, 4, 8, 10)] == [0, 0, 4, 4, 8]
    assert content(tmp_path / "stopped") == {
        name.replace("whole", "stopped"): data for name, data in content(tmp_path / "whole").items()
    }
    assert not [path for path in tmp_path.rglob("*") if re.search("parts|partial|drawing", path.name)]


def test_what_is_written_is_what_was_drawn(tmp_path):
    for place in PLACES:
        draw(f"{tmp_path}/{place}")
    with np.load(tmp_path / "a.npz") as file:
        for name in ("images", "arr_0"):
            assert file[name].dtype == np.uint8
            np.testing.assert_array_equal(file[name], IMAGES)
    for i, path in enumerate(sorted((tmp_path / "folder").iterdir())):
        np.testing.assert_array_equal(np.asarray(Image.open(path)), IMAGES[i])
    picture_files.save_grid(tmp_path / "b.png", IMAGES)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize("place", PLACES)
def test_what_is_finished_is_kept(tmp_path, place):
    draw(f"{tmp_path}/{place}")
    before = content(tmp_path)
    with pytest.raises(ValueError, match=r"is there already: choose another --out|is not empty: choose another one"):
        draw(f"{tmp_path}/{place}", {"--seed": 1})
    assert content(tmp_path) == before


@pytest.mark.parametrize("place", PLACES)
def test_two_calls_at_once(tmp_path, place):
    """The second is told of the first, also one with the same settings; or, where it reads its network for longer than
    the first draws, of the pictures, which it would replace, or take for its own."""
    first, second = Output(f"{tmp_path}/{place}"), Output(f"{tmp_path}/{place}")
    with first.alone(pytest.fail), pytest.raises(OSError, match=rf"in use by process {os.getpid()} on .*, there since"):
        draw_in(second)
    draw_in(first)
    before = content(tmp_path)
    with pytest.raises(ValueError, match=r"is there already: choose another --out|is not empty: choose another one"):
        draw_in(second, {"--seed": 1})
    assert content(tmp_path) == before
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("place", PLACES)
def test_other_settings_do_not_go_on(tmp_path, place):
    """They are named, as their options are; what is there stays."""
    draw(f"{tmp_path}/{place}", stop=8)
    before = content(tmp_path)
    message = r"holds a part of .* drawn otherwise \(step 6000, now 8000; --seed 0, now 1; --label None, now 2\): "
    with pytest.raises(ValueError, match=message):
        draw(f"{tmp_path}/{place}", SETTINGS | {"step": 8000, "--seed": 1, "--label": 2})
    with pytest.raises(ValueError, match=r"\(--seed 0, now None\)"):
        draw(f"{tmp_path}/{place}", {"step": 6000, "--timesteps": (9, 0)})
    assert content(tmp_path) == before
    assert draw(f"{tmp_path}/{place}") == 8


def test_a_batch_of_a_folder_that_was_half_written(tmp_path):
    """Its pictures are drawn again, those that are there stay as they are, one that lost its bytes is written."""
    draw(f"{tmp_path}/folder/", stop=8)
    paths = sorted((tmp_path / "folder").glob("*.png"))
    paths[7].unlink()
    paths[6].write_bytes(b"")
    (tmp_path / "folder" / "000007.png.partial").write_bytes(b"half")
    times = [path.stat().st_mtime_ns for path in paths[:6]]
    assert draw(f"{tmp_path}/folder/") == 4
    assert [path.stat().st_mtime_ns for path in paths[:6]] == times
    draw(f"{tmp_path}/whole/")
    assert [*content(tmp_path / "folder").values()] == [*content(tmp_path / "whole").values()]


def test_one_stopped_before_its_first_picture(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "drawing.json.partial").write_text("{")
    assert draw(tmp_path / "folder") == 0
    assert len(list((tmp_path / "folder").iterdir())) == 10


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"settings": 3, "not_finite": []}', "[" * 100_000])
def test_a_record_that_is_none(tmp_path, text):
    draw(f"{tmp_path}/a.npz", stop=8)
    (tmp_path / "a.npz.parts" / "drawing.json").write_text(text)
    with pytest.raises(ValueError, match=r"drawing\.json is not what was written"):
        draw(f"{tmp_path}/a.npz")


def test_a_place_that_cannot_be_written_is_refused_first(tmp_path):
    """Before a network is read; nothing is left there."""
    (tmp_path / "file").write_text("kept")
    for out in ("file/a.npz", "file/folder/", "file/x/a.png"):
        with pytest.raises(OSError, match=re.escape(f"'{tmp_path / 'file'}'") + "$"):
            Output(f"{tmp_path}/{out}")
    Output(f"{tmp_path}/x/y/a.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_many_pictures_are_never_in_memory_together(tmp_path):
    images = np.random.RandomState(0).randint(0, 256, (256, 64, 64, 3), np.uint8)  # 3 MB

    def most(place):
        tracemalloc.start()
        for n in (32, 256):
            tracemalloc.reset_peak()
            draw(f"{tmp_path}/{n}{place}", images=images[:n], batch_size=8, stop=n)
            yield tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()

    for place in (".npz", "/"):
        few, many = most(place)
        assert many < 1.2 * few, place


def test_what_is_not_finite_is_remembered(tmp_path):
    drawing = Drawing(Output(f"{tmp_path}/a.npz"), SETTINGS, 10, 4)
    drawing.add(IMAGES[:4], [2, 3])
    assert json.loads((tmp_path / "a.npz.parts" / "drawing.json").read_text())["not_finite"] == [2, 3]
    drawing = Drawing(Output(f"{tmp_path}/a.npz"), SETTINGS, 10, 4)
    drawing.add(IMAGES[4:8], [5])
    assert drawing.first == 8 and drawing.not_finite == [2, 3, 5]
