"""`ddpm-jax evaluate`: the same JSON however it is stopped and batched, and one line for each bad input."""

import dataclasses
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ddpm_jax import cli, images, pictures
from ddpm_jax.config.run import SampleConfig
from ddpm_jax.evaluate import features, kept, metrics, quality
from ddpm_jax.evaluate.samples import frechet, kid, moments
from tests.runs.small import small_run

N = 13


def simple(images):
    """Means over the quarters of a picture: [B, 4]."""
    x = images.astype(jnp.float32) / 255
    return x.reshape(len(x), 2, 4, 2, 4, -1).mean((2, 4, 5)).reshape(len(x), 4)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("home"), SampleConfig(num_steps=2, num_images=4), num_steps=2)


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """A feature network that costs nothing, blocks of 4, and a cache of the test's own."""
    found = dataclasses.replace(features.of_function("simple", simple, (8, 8, 1)), batch=2)
    monkeypatch.setattr(features, "of_name", lambda name, **_: found)
    monkeypatch.setattr(kept, "BLOCK", 4)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(made, tmp_path):
    return shutil.copytree(made, tmp_path / "run")


def evaluate(*words):
    cli.main(["evaluate", *map(str, words)])


def result(out):
    (path,) = [path for path in out.rglob("*.json") if path.name not in ("kept.json", "lock.json")]
    return json.loads(path.read_text())


def error_of(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        evaluate(*words)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code == 2 and error.startswith("ddpm-jax: ")
    return error


def data_of(run):
    return json.loads((run / "config.json").read_text())["config"]["data"]["name"]


def test_the_numbers_are_those_of_what_sample_draws(run, tmp_path, capsys):
    """Against the run's own data, and the same as of the pictures in a file and in a folder."""
    evaluate(run, "-n", N, "--seed", 3, "--out", "a")
    said = capsys.readouterr().out
    assert f"the reference is the run's own data: {data_of(run)} train, 20 images" in said and "is better" in said
    found = result(tmp_path / "a")
    for out in ("drawn.npz", "drawn/"):
        cli.main(["sample", str(run), "-n", str(N), "--seed", "3", "--out", out])
    drawn, data = np.load("drawn.npz")["images"], np.load(data_of(run))
    a, b = np.asarray(simple(drawn)), np.asarray(simple(data))
    gaussians = moments.of(a).gaussian, moments.of(b).gaussian
    assert found["metrics"]["fid"]["value"] == pytest.approx(frechet.distance(*gaussians), rel=1e-5)
    assert found["metrics"]["kid"] == pytest.approx(kid.distance(a, b)._asdict(), rel=1e-5)
    card = found["protocol"]
    assert (card["pictures"]["number"], card["reference"]["number"]) == (N, 20)
    assert (card["pictures"]["sampler"], card["pictures"]["steps"], card["pictures"]["seed"]) == ("ddim", 2, 3)
    assert card["features"]["network"] == "simple" and card["pictures"]["labels"] == "none"
    for place in ("drawn.npz", "drawn"):
        evaluate(place, "--against", data_of(run), "--out", f"of {place}")
        assert result(tmp_path / f"of {place}")["metrics"] == found["metrics"]


def test_a_stopped_call_goes_on(run, tmp_path, monkeypatch, capsys):
    """On other devices, with the bytes of one that was not stopped; another metric of the pictures draws nothing."""
    evaluate(run, "-n", 20, "--batch-size", 3, "--out", "whole")
    batches, told = pictures.Program.batches, []

    def some(self, weights, first, stop):
        told.append(first)
        for count, batch in enumerate(batches(self, weights, first, stop)):
            if count == 2 and len(told) == 1:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(pictures.Program, "batches", some)
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:2])
    words = (run, "-n", 20, "--batch-size", 3, "--out", "stopped")
    with pytest.raises(SystemExit) as stop:
        evaluate(*words)
    assert stop.value.code == 130 and "the same command goes on" in capsys.readouterr().err
    evaluate(*words)
    assert told == [0, 6] and "8 of 20 pictures of" in capsys.readouterr().out
    ((whole,), (stopped,)) = ([*(tmp_path / place).rglob("fid-kid*.json")] for place in ("whole", "stopped"))
    assert whole.read_bytes() == stopped.read_bytes()
    evaluate(*words, "--metrics", "kid")
    assert told == [0, 6]


def test_a_batch_changes_nothing(run, tmp_path):
    """But for the line of the protocol that says it; on one device and on four."""
    found = []
    for batch_size in (1, 64):
        evaluate(run, "-n", N, "--batch-size", batch_size, "--out", f"{batch_size}")
        found.append(result(tmp_path / f"{batch_size}"))
        assert found[-1]["protocol"]["pictures"].pop("batch size") == batch_size
    assert found[0] == found[1]


def test_numbers_of_another_protocol_are_kept_beside(run, tmp_path):
    """Of references that are called alike, and of another seed, which decides the images of a subset."""
    for k, place in enumerate(("one", "two")):
        (tmp_path / place).mkdir()
        images = np.random.RandomState(k).randint(0, 256, (12, 8, 8, 1)).astype(np.uint8)
        np.save(tmp_path / place / "data.npy", images)
    words = ("one/data.npy", "--out", "a")
    evaluate(*words, "--against", "one/data.npy")
    evaluate(*words, "--against", "two/data.npy")
    evaluate(*words, "--against", "two/data.npy", "--seed", 1)
    evaluate(*words, "--against", "two/data.npy", "--seed", 1)
    found = [json.loads(path.read_text()) for path in (tmp_path / "a").rglob("fid-kid*.json")]
    assert sorted(each["protocol"]["metrics"]["seed of subsets"] for each in found) == [0, 0, 1]
    assert len({each["metrics"]["fid"]["value"] for each in found}) == 2


def test_features_of_a_reference_are_kept(run, tmp_path, monkeypatch):
    """By what they are of: the same pictures at another place are not computed again, other ones are."""
    extract, counts = features.extract, []

    def counted(network, batches, outputs):
        for found in extract(network, batches, outputs):
            counts.append(len(found["features"]))
            yield found

    monkeypatch.setattr(quality, "extract", counted)
    data = np.load(data_of(run))
    np.save("pictures.npy", data[:9])
    for name, part in (("one", data), ("two", data), ("three", data[::-1])):
        np.save(f"{name}.npy", part)
        evaluate("pictures.npy", "--against", f"{name}.npy", "--out", name)
    assert sum(counts) == 3 * 9 + 2 * 20
    assert result(tmp_path / "one")["metrics"] == result(tmp_path / "two")["metrics"]


def test_statistics_in_files(made, tmp_path, capsys):
    """The Fréchet distance to a file is that to its pictures, with an error of one draw; other files are refused."""
    data = np.load(data_of(made))
    np.save("some.npy", data[:N])
    np.save("all.npy", data)
    every = [name for name in metrics.METRICS if name not in ("sfid", "is")]
    evaluate("some.npy", "--against", "all.npy", "--metrics", *every, "--statistics", "stats.npz", "--out", "a")
    evaluate("some.npy", "--metrics", "fid", "--against", "stats.npz", "--out", "a")
    (found, own) = (json.loads(path.read_text()) for path in sorted((tmp_path / "a").rglob("fid*.json")))
    assert len(found["metrics"]) == 9 and all(np.isfinite(each["value"]) for each in found["metrics"].values())
    assert "two-sample: of the first 13 images of each set" in found["notes"]
    assert own["metrics"]["fid"]["value"] == found["metrics"]["fid"]["value"]
    assert own["metrics"]["fid"]["standard_error"] < found["metrics"]["fid"]["standard_error"]
    assert own["protocol"]["reference"]["number"] == 20 and own["notes"] == []
    stats = dict(np.load("stats.npz"))
    np.testing.assert_allclose(stats["sigma"], np.cov(np.asarray(simple(data)).T), atol=1e-8)  # float32
    about = json.loads(str(stats.pop("meta")))
    np.savez("plain.npz", **stats)  # as pytorch-fid writes it
    evaluate("some.npy", "--metrics", "fid", "--against", "plain.npz", "--out", "b")
    read = result(tmp_path / "b")
    assert read["metrics"] == own["metrics"]
    assert read["notes"] == ["plain.npz does not say of which network its statistics are"]
    np.savez("other.npz", **stats, meta=json.dumps({**about, "sha256": "0" * 64}))
    np.savez("resized.npz", **stats, meta=json.dumps({**about, "resize": "bicubic"}))
    np.savez("wide.npz", mu=np.zeros(5), sigma=np.eye(5))
    np.savez("half.npz", mu=np.zeros(5))
    for words, said in (
        (("other.npz", "--metrics", "fid"), "other.npz: the statistics are of simple with weights 000000000000"),
        (("resized.npz", "--metrics", "fid"), "resized.npz is of pictures resized by bicubic, and --features resizes"),
        (("wide.npz", "--metrics", "fid"), "wide.npz has statistics of 5 features, and --features simple gives 4"),
        (("half.npz",), "half.npz holds mu.* have mu and sigma"),
        (("plain.npz",), "kid needs the features of the reference, and plain.npz has their mean and covariance only"),
        (("plain.npz", "--data.split", "test"), "--data.split test is for pictures, and plain.npz has statistics"),
        (("plain.npz", "--statistics", "new.npz"), "--statistics new.npz is for a reference of pictures"),
        (("plain.npz", "--metrics", "is"), "is needs the logits of a network, and --features simple has features"),
    ):
        assert re.search(said, error := error_of(capsys, "some.npy", "--against", *words)), error
    assert "stats.npz is there already" in error_of(
        capsys, "some.npy", "--against", "all.npy", "--statistics", "stats.npz"
    )


def test_damaged_moments_are_made_again(made, tmp_path, capsys):
    np.save("some.npy", np.load(data_of(made))[:N])
    evaluate("some.npy", "--against", data_of(made), "--out", "a")
    (path,) = (tmp_path / "cache").rglob("moments_*.npz")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    evaluate("some.npy", "--against", data_of(made), "--out", "a")
    assert "it is made again" in capsys.readouterr().out and path.read_bytes() == content


# --------------------------------------------------------------------------------------------------------- bad input


def test_bad_input(run, tmp_path, capsys):
    """One line that says what is allowed, before anything is drawn."""
    picture = np.zeros((8, 8), np.uint8)
    for name, side in (("mixed/a.png", 8), ("mixed/b.png", 9), ("one/a.png", 8)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.zeros((side, side), np.uint8)).save(tmp_path / name)
    shutil.copytree("one", "part")
    (tmp_path / "part" / "drawing.json").write_text("{}")
    np.save("larger.npy", np.zeros((5, 16, 16, 1), np.uint8))
    np.save("floats.npy", np.full((5, 8, 8, 1), np.nan, np.float32))
    np.save("five.npy", np.stack([picture] * 5)[..., None])
    for words, said in (
        (("mixed", "--against", "five.npy"), "b.png is 9x9 pixels, but .*a.png is 8x8; pass .*--data.image-size"),
        (("one", "--against", "five.npy"), "one has 1 image: metrics need at least 2"),
        (("part", "--against", "five.npy"), "part has a part of the pictures of `sample`: the same command"),
        (("five.npy", "--against", "one"), "one train has 1 image: metrics need at least 2"),
        (("five.npy", "-n", 6, "--against", run), "--num-images must be at most 5, the images of five.npy, got 6"),
        ((run, "-n", 1), "--num-images must be at least 2, got 1"),
        (("floats.npy", "--against", "five.npy"), "holds float32; allowed is uint8"),
        ((run, "-n", 4, "--metrics", "fit"), "unknown --metrics 'fit'.*fid"),
        ((run, "-n", 4, "--metrics", "kid", "kid"), "--metrics names kid twice"),
        (
            (run, "-n", 4, "--metrics", "sfid"),
            "sfid needs the spatial of a network, and --features simple has features",
        ),
        (("five.npy",), "fid compares with a reference: give --against"),
        (("five.npy", "--against", "larger.npy"), "five.npy are 8 x 8 x 1, .* larger.npy train 16 x 16 x 1; --data.im"),
        (("five.npy", "--sampler", "ddim", "--against", "five.npy"), "--sampler is for what is drawn, and five.npy is"),
        ((run, "--data.split", "test"), "--data.split test is for --against: a run knows its data"),
        (("nothing", "--against", "five.npy"), "no run, network or pictures at nothing"),
    ):
        assert re.search(said, error := error_of(capsys, *words)), error
    assert not list(tmp_path.rglob("*_evaluate")) and not (run / "evaluate").exists()


def test_numbers_that_are_none(run, tmp_path, monkeypatch, capsys):
    """Pictures and features that are not finite end the call, and are not kept."""
    bad = lambda images: simple(images) / jnp.where(images[:, :1, 0, 0] > 200, 0.0, 1.0)
    monkeypatch.setattr(features, "of_name", lambda name, **_: features.of_function("bad", bad, (8, 8, 1)))
    np.save("white.npy", np.concatenate([np.zeros((6, 8, 8, 1)), np.full((2, 8, 8, 1), 255)]).astype(np.uint8))
    error = error_of(capsys, "white.npy", "--against", "white.npy")
    assert "features of 2 of 8 pictures have NaN or infinity, first picture 6" in error
    monkeypatch.setattr(images, "not_finite", lambda x_0: np.array([1]))
    error = error_of(capsys, run, "-n", 4)
    assert "1 of 4 images have NaN or infinity, first image 1: the sampler diverges" in error and "--allow" not in error


def test_few_images_for_the_features(made, tmp_path, capsys):
    """N <= D: the covariance is singular, and it is said."""
    np.save("few.npy", np.load(data_of(made))[:4])
    evaluate("few.npy", "--against", data_of(made), "--metrics", "fid")
    assert "4 images for 4 features: a covariance is singular" in capsys.readouterr().out
    assert "a covariance is singular" in result(tmp_path / "few_evaluate")["notes"][0]
    error = error_of(capsys, "few.npy", "--against", data_of(made), "--metrics", "fid-infinity")
    assert "fid-infinity needs more images than the 4 features and one, got 4" in error
