"""`ddpm-jax nll` on a small run: its numbers, its files, killed and started again."""

import csv
import dataclasses
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import build, cli, data, images, interop, opening
from ddpm_jax.config.condition import ConditionConfig
from ddpm_jax.config.run import DataConfig, SampleConfig, ScheduleConfig
from ddpm_jax.evaluate import optimal_timesteps, step_costs, vlb_terms
from ddpm_jax.evaluate.likelihood import nll
from ddpm_jax.models import bind
from ddpm_jax.runs import checkpoint
from tests.helpers import trained_of
from tests.runs.small import small_run

FILES = {"sums.npz", "summary.json", "vlb.csv", "vlb.png", "rate_distortion.csv", "rate_distortion.png"}


pytestmark = pytest.mark.usefixtures("optax_promotes")


class Silent:
    def __init__(self):
        self.calls, self.said = [], []

    def start(self, *numbers):
        self.calls.append(numbers)

    def images(self, *numbers):
        self.calls.append(numbers)

    def say(self, message):
        self.said.append(message)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """What a run on 20 pictures in an array file leaves after step 2."""
    return small_run(tmp_path_factory.mktemp("home"), SampleConfig(num_steps=2, num_images=4), num_steps=2)


def evaluate(workdir, report=None, **options):
    defaults = {"split": None, "num_images": None, "batch_size": 8, "seed": 0, "num_steps": None, "optimal_steps": None}
    report = report or Silent()
    trained = opening.open(workdir, report.say)
    return nll.evaluate(trained, trained.run.data, workdir / "nll", report, **defaults | options)


def contents(folder):
    """What is in the files; a PNG names the version of its library, so its size will do."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def columns(path):
    with open(path) as file:
        rows = list(csv.reader(file))
    return dict(zip(rows[0], np.array(rows[1:], float).T, strict=True))


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    """(workdir, report, result) of an evaluation that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    shutil.copytree(run, workdir)
    report = Silent()
    with jax.numpy_dtype_promotion("standard"):
        return workdir, report, evaluate(workdir, report)


def test_the_numbers_are_those_of_vlb_terms(run, whole):
    _, report, (folder, summary) = whole
    config = checkpoint.load_run(run).config
    schedule, model = build.make_schedule(config.schedule), build.make_model(config, (8, 8, 1))
    params, _ = checkpoint.restore_ema_and_step(run, build.params_template(model, (8, 8, 1)), print)
    pictures = images.to_float(data.load(config.data.name).images(np.arange(20)))
    terms = jax.jit(lambda x_0: vlb_terms(bind(model, params), schedule, x_0, jax.random.key(0)))(pictures)
    total = np.asarray(terms.total_bits_per_dim, np.float64)
    bits = summary["bits_per_dim"]
    assert bits["total"]["mean"] == pytest.approx(total.mean(), rel=1e-5)
    assert bits["total"]["standard_error"] == pytest.approx(total.std(ddof=1) / 20**0.5, rel=1e-3)
    assert bits["decoder"]["mean"] == pytest.approx(float(terms.bits_per_dim[:, 0].mean()), rel=1e-5)
    by_t = columns(folder / "vlb.csv")
    assert list(by_t)[:2] == ["timestep", "bits_per_dim"] and list(by_t["timestep"]) == list(range(25))
    np.testing.assert_allclose(by_t["bits_per_dim"], terms.bits_per_dim.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(by_t["x_0_mse"], terms.x_0_mse.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(by_t["eps_mse"], terms.eps_mse.mean(axis=0), rtol=1e-4)
    curve = columns(folder / "rate_distortion.csv")
    assert (curve["rate"][0], curve["distortion"][0]) == (bits["total"]["mean"], 0)
    np.testing.assert_array_equal(curve["rate"][1:], by_t["rate"])
    assert (np.diff(curve["rate"]) <= 0).all()
    assert report.calls[0] == (0, 20) and [n for n, _ in report.calls[1:]] == [8, 16, 20]
    assert report.calls[-1][1] == bits["total"]["mean"]


def test_the_files(whole):
    _, _, (folder, summary) = whole
    assert {path.name for path in folder.iterdir()} == FILES
    assert summary == json.loads((folder / "summary.json").read_text())
    settings = summary["settings"]
    assert (settings["checkpoint_step"], settings["split"], settings["num_images"], settings["seed"]) == (
        2,
        "train",
        20,
        0,
    )
    # Grids for samplers: those of the table, as `optimal_timesteps` finds them.
    schedule = build.make_schedule(ScheduleConfig("linear", 25, {"beta_end": 0.2}))
    costs = step_costs(schedule, columns(folder / "vlb.csv")["x_0_mse"], variance="fixed_large")
    found = summary["optimal"]["steps"]
    assert list(found) == ["10", "20"]  # 50 is more than the schedule has
    assert found["10"]["timesteps"] == optimal_timesteps(costs, 10).tolist()
    assert found["10"]["transitions"] < found["10"]["transitions_even"]


def test_killed_and_started_again_it_is_the_same(run, whole, tmp_path):
    shutil.copytree(run, tmp_path / "run")

    class Killer(Silent):
        def images(self, num_images, bits):
            super().images(num_images, bits)
            if len(self.calls) == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(tmp_path / "run", Killer())
    (folder,) = (tmp_path / "run" / "nll").iterdir()
    assert {path.name for path in folder.iterdir()} == {"sums.npz"}
    (folder / "sums.npz.partial").write_bytes(b"cut off by the kill")
    report = Silent()
    result = evaluate(tmp_path / "run", report)
    assert report.calls[0] == (16, 20) and len(report.calls) == 2
    assert contents(result.folder) == contents(whole[2].folder)


def test_started_again_when_done_it_computes_nothing_but_what_is_new(whole):
    workdir, _, (folder, summary) = whole
    before, report = contents(folder), Silent()
    again = evaluate(workdir, report, optimal_steps=(5,))
    assert report.calls == [(20, 20)] and list(again.summary["optimal"]["steps"]) == ["5"]
    assert again.summary["bits_per_dim"] == summary["bits_per_dim"]
    evaluate(workdir)
    assert contents(folder) == before


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory):
    """The run as diffusers has it."""
    path = tmp_path_factory.mktemp("converted") / "folder"
    interop.save_diffusers(path, opening.open(run, print))
    return path


def test_a_folder_of_diffusers_has_the_bits_of_its_run(run, whole, folder, tmp_path, monkeypatch, capsys):
    """To float32's betas, as which diffusers has the schedule; to the last bit on that of the run."""
    monkeypatch.chdir(tmp_path)
    before = sorted(folder.rglob("*"))
    pictures = checkpoint.load_run(run).config.data.name
    cli.main(["nll", str(folder), "--data.name", pictures, "--batch-size", "8"])
    results = tmp_path / "folder_nll" / "train_n20_steps25_seed0"
    assert str(results.relative_to(tmp_path)) in capsys.readouterr().out
    assert {path.name for path in results.iterdir()} == FILES and sorted(folder.rglob("*")) == before
    found, expected = (
        json.loads((results / "summary.json").read_text())["bits_per_dim"],
        whole[2].summary["bits_per_dim"],
    )
    for name in ("total", "decoder", "transitions"):
        assert found[name]["mean"] == pytest.approx(expected[name]["mean"], rel=2e-3), name
    trained = dataclasses.replace(opening.open(folder, print), schedule=opening.open(run, print).schedule)
    defaults = {"split": "train", "num_images": None, "seed": 0, "num_steps": None, "optimal_steps": None}
    again = nll.evaluate(trained, DataConfig(name=pictures), tmp_path / "there", Silent(), batch_size=8, **defaults)
    assert again.summary["bits_per_dim"] == expected


def test_results_are_not_written_into_what_is_there(folder, tmp_path, capsys):
    mine = tmp_path / "out" / "train_n2_steps2_seed0"
    mine.mkdir(parents=True)
    (mine / "summary.json").write_text("mine")
    np.save(tmp_path / "pictures.npy", np.zeros((2, 8, 8, 1), np.uint8))
    options = ["--data.name", str(tmp_path / "pictures.npy"), "--num-steps", "2", "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        cli.main(["nll", str(folder), *options])
    assert re.search(r"train_n2_steps2_seed0 exists and has no sums.npz: .* --out", capsys.readouterr().err)
    assert [(path.name, path.read_text()) for path in mine.iterdir()] == [("summary.json", "mine")]


def test_other_settings_are_never_mixed(run, whole, tmp_path):
    workdir, _, (folder, summary) = whole
    for options in ({"seed": 1}, {"num_images": 9}):
        other = evaluate(workdir, **options)
        assert other.folder != folder and other.summary["bits_per_dim"] != summary["bits_per_dim"]
    with pytest.raises(ValueError, match=r"sums.npz is of other settings \(batch_size: 8, now 4\); delete it to start"):
        evaluate(workdir, batch_size=4)
    # Another network at the same step of a run of the same name.
    shutil.copytree(workdir, tmp_path / "run")
    other = tmp_path / "run" / "nll" / folder.name / "sums.npz"
    with np.load(other) as file:
        arrays = dict(file)
    arrays["settings"] = np.array(str(arrays["settings"]).replace('"parameters_crc32": ', '"parameters_crc32": 1'))
    np.savez(other, **arrays)
    with pytest.raises(ValueError, match=r"other settings \(parameters_crc32: 1\d+, now \d+\)"):
        evaluate(tmp_path / "run")
    other.write_bytes(b"not a file of NumPy's")
    with pytest.raises(ValueError, match=r"sums.npz cannot be read \(.*\); delete it to start again"):
        evaluate(tmp_path / "run")


def test_other_images_under_the_same_name_are_never_mixed(run, tmp_path):
    """Six of the twenty become black; sums of before there was a fingerprint go on, and say so."""
    pictures = np.load(checkpoint.load_run(run).config.data.name)
    images_of = DataConfig(name=str(tmp_path / "pictures.npy"))
    trained, report = opening.open(run, print), Silent()
    options = {"split": None, "num_images": None, "batch_size": 8, "seed": 0, "num_steps": 2, "optimal_steps": ()}
    again = lambda: nll.evaluate(trained, images_of, tmp_path / "nll", report, **options)
    np.save(images_of.name, pictures)
    first = again()
    np.save(images_of.name, np.where(np.arange(20)[:, None, None, None] < 6, 0, pictures).astype(np.uint8))
    with pytest.raises(ValueError, match=r"of other settings \(fingerprint: '\w{32}', now '\w{32}'\); delete it to"):
        again()
    np.save(images_of.name, pictures)
    sums = first.folder / "sums.npz"
    with np.load(sums) as file:
        arrays = dict(file)
    settings = json.loads(str(arrays.pop("settings")))
    np.savez(sums, settings=json.dumps({name: settings[name] for name in settings if name != "fingerprint"}), **arrays)
    assert again().summary == first.summary
    assert report.calls[4:] == [(20, 20)] and again().summary == first.summary
    assert len([line for line in report.said if "does not say of which images" in line]) == 1


def test_labels_are_not_read(run, tmp_path):
    """No likelihood here depends on them: labels that train refuses do not keep nll from the images."""
    images_of = DataConfig(name=str(tmp_path / "pictures.npz"))
    pictures = np.load(checkpoint.load_run(run).config.data.name)
    np.savez(images_of.name, images=pictures, labels=np.full(20, -1))
    with pytest.raises(ValueError, match="label -1"):
        data.load(images_of.name)
    options = {"split": None, "num_images": 8, "batch_size": 8, "seed": 0, "num_steps": 2, "optimal_steps": ()}
    found = nll.evaluate(opening.open(run, print), images_of, tmp_path / "nll", Silent(), **options)
    assert found.summary["settings"]["num_images"] == 8


def test_a_strided_process_is_that_of_its_timesteps(whole):
    workdir, _, _ = whole
    result = evaluate(workdir, num_steps=5)
    assert list(columns(result.folder / "vlb.csv")["timestep"]) == [0, 6, 12, 18, 24]
    assert list(result.summary["optimal"]["steps"]) == []


def test_data_without_a_test_split_says_so(whole):
    assert len(whole[1].said) == 1
    assert re.search(
        r"pictures.npy has no split 'test': these are bits/dim of 'train', the images of the tr", whole[1].said[0]
    )


@pytest.mark.parametrize(
    "options, message",
    [
        ("-n 21", r"num_images must lie in \[1, 20\], the images of 'train', got 21"),
        ("-n 0", r"num_images must lie in \[1, 20\].*got 0"),
        ("--batch-size 0", "batch_size must be at least 1, got 0"),
        ("--split test", "has no split 'test'; a folder or an array file has only the split 'train'"),
        ("--num-steps 26", r"num_steps must lie in \[2, 25\], got 26"),
        ("--optimal-steps 5 26", r"optimal_steps must lie in \[2, 25\], got 26"),
        ("--seed x", "--seed.*'x'"),
    ],
)
def test_a_users_error_is_one_line(run, options, message, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["nll", str(run), *options.split()])
    error = capsys.readouterr().err.strip()
    assert stop.value.code == 2 and error.startswith("ddpm-jax: ") and "\n" not in error
    assert re.search(message, error), error
    assert not (run / "nll").exists()


def test_a_run_without_checkpoint_or_no_run_at_all(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    for workdir, message in ((tmp_path / "run", "no checkpoint in .*run/checkpoints"), (tmp_path, "no config.json in")):
        with pytest.raises(SystemExit):
            cli.main(["nll", str(workdir)])
        assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize("name, value", [("prediction", "x_prev"), ("variance", "learned")])
def test_a_network_of_the_steps_of_its_training_is_not_strided(name, value):
    trained = trained_of(model=None, params=None, image_shape=(8, 8, 1), **{name: value})
    assert nll.strided(trained, None).num_timesteps == 1000
    with pytest.raises(
        ValueError, match=f"a network with {name} '{value}' knows only the steps of its training.* 1000"
    ):
        nll.strided(trained, 50)


def test_the_command_prints_where_the_bits_go(whole, capsys):
    workdir, _, (folder, summary) = whole
    cli.main(["nll", str(workdir), "--batch-size", "8"])
    out = capsys.readouterr().out
    bits = summary["bits_per_dim"]
    assert f"bits/dim {bits['total']['mean']:.4f} ± {bits['total']['standard_error']:.4f}: prior" in out
    assert f"decoder {bits['decoder']['mean']:.4f}" in out and str(folder) in out


def test_its_timesteps_are_for_sample(whole, capsys):
    workdir, _, (_, summary) = whole
    timesteps = [str(t) for t in summary["optimal"]["steps"]["10"]["timesteps"]]
    cli.main(["sample", str(workdir), "-n", "2", "--timesteps", *timesteps])
    assert len(list(workdir.glob("step*_ddim_10chosen????????_n2_seed0.png"))) == 1
    with pytest.raises(SystemExit):
        cli.main(["sample", str(workdir), "--timesteps", *timesteps, "1000"])
    assert "timesteps must lie in [0, 25), got 1000" in capsys.readouterr().err


def test_a_network_of_classes_is_told_each_images_own(tmp_path):
    """The bound is that of p(x | y)."""
    sampler = SampleConfig(num_steps=2, num_images=4)
    run = small_run(tmp_path, sampler, 2, ConditionConfig(("class",), 0.1))
    found = evaluate(run, num_steps=4, num_images=12, optimal_steps=()).summary["bits_per_dim"]["total"]["mean"]
    trained, record = opening.open(run, print), data.load(checkpoint.load_run(run).config.data.name).read(range(12))
    schedule, x_0 = nll.strided(trained, 4), images.to_float(record["image"])
    total = lambda y: float(
        vlb_terms(
            trained.model_fn(y=jnp.asarray(y, jnp.int32)), schedule, x_0, jax.random.key(0)
        ).total_bits_per_dim.mean()
    )
    assert found == pytest.approx(total(record["label"]), rel=1e-5)
    assert found != pytest.approx(total((record["label"] + 1) % 3), rel=1e-4)


@pytest.mark.parametrize("labels, message", [(None, "is read without labels"), ([0, 1], r"has 2 \(0, 1, \.\.\.\)")])
def test_data_of_other_classes_are_refused(labels, message, tmp_path):
    run = small_run(tmp_path, SampleConfig(num_steps=2), 2, ConditionConfig(("class",), 0.1))
    found, place = np.zeros((20, 8, 8, 1), np.uint8), tmp_path / "other.npz"
    np.savez(place, images=found, **({} if labels is None else {"labels": np.arange(20) % 2}))
    options = {"split": None, "num_images": 8, "batch_size": 8, "seed": 0, "num_steps": 2, "optimal_steps": ()}
    with pytest.raises(ValueError, match=rf"is told one of 3 classes.* {message}"):
        nll.evaluate(opening.open(run, print), DataConfig(name=str(place)), tmp_path / "nll", Silent(), **options)
