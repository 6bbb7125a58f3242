"""ddpm-jax learn-sampler, and what the other commands do with its files."""

import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from ddpm_jax import cli, interop, opening, pictures, schedules
from ddpm_jax.distil import command, files, fit
from ddpm_jax.distil.start import HandMade
from ddpm_jax.samplers.catalogue import make_table
from tests.distil.common import Silent

SMALL = """
from ddpm_jax.config.run import *

config = Config(
    model=ModelConfig(channels=4, channel_multipliers=(1,), attention_resolutions=(), num_groups=2),
    optimizer=OptimizerConfig(learning_rate=5e-3, warmup_steps=0, ema_decay=0.9),
    sample=SampleConfig(num_steps=2, num_images=4, clip=None),  # a hardly trained network would be at the clip's ends
    train=TrainConfig(num_steps=200, batch_size=16, log_every=100, checkpoint_every=100, sample_every=200),
)
"""
FEW = "--num-pairs 8 --num-held-out 8 --batch-size 8 --num-updates 3 --teacher-steps 8".split()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    (home / "small.py").write_text(SMALL)
    with jax.numpy_dtype_promotion("standard"):
        cli.main(["train", str(home / "small.py"), "--workdir", str(home / "run")])
        cli.main(["learn-sampler", str(home / "run"), "--num-steps", "2", *FEW, "--start", "ddim"])
    return home / "run"


def error_of(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code == 2
    return error


def test_the_command_writes_a_sampler_that_sample_uses(run, tmp_path):
    path = run / "samplers" / "learned_2.json"
    content = json.loads(path.read_text())
    errors = [error["geometric_mean"] for error in content["made"]["held_out_errors"]]
    before = content["made"]["its_held_out_error"]["geometric_mean"]
    assert errors[-1] < errors[0] < before and content["made"]["begun_with"] == "ddim on its own grid"
    assert len(errors) == 1 + 3
    made_of = content["made"]["network"]
    assert made_of["step"] == 200 and made_of["schedule"]["name"] == "linear" and made_of["prediction"] == "eps"
    assert content["made"]["options"]["num_pairs"] == 8 and content["made"]["teacher"] == "unipc on karras, 8 calls"
    cli.main(["sample", str(run), "--sampler", str(path), "-n", "4", "--out", str(tmp_path / "a.npz")])
    with np.load(tmp_path / "a.npz") as file:
        found = file["images"]
    source = opening.open(run, print)
    preset = pictures.Preset(files.load(path).table(), source.denoiser)
    expected = np.concatenate(list(pictures.pictures(source, preset, pictures.labels(source), 4, 4, 0)))
    np.testing.assert_array_equal(found, expected)
    ddim = pictures.preset(source, "ddim", 2, None, None)
    assert (found != next(pictures.pictures(source, ddim, pictures.labels(source), 4, 4, 0))).any()


@pytest.mark.slow
def test_a_sampler_of_a_folder_is_that_of_its_run(run, tmp_path, monkeypatch, capsys):
    """But for float32's betas, as which diffusers has the schedule."""
    monkeypatch.chdir(tmp_path)
    interop.save_diffusers("folder", opening.open(run, print))
    before = sorted(Path("folder").rglob("*"))
    cli.main(["learn-sampler", "folder", "--num-steps", "2", *FEW, "--start", "ddim"])
    assert sorted(Path("folder").rglob("*")) == before
    path = Path("folder_samplers") / "learned_2.json"
    assert f"pictures: ddpm-jax sample folder --sampler {path}" in capsys.readouterr().out
    found, expected = (files.load(each) for each in (path, run / "samplers" / "learned_2.json"))
    for ours, theirs in zip(found.calls, expected.calls, strict=True):
        np.testing.assert_allclose(ours.time, theirs.time, atol=0.1)
        np.testing.assert_allclose([*ours.x_0, ours.eps], [*theirs.x_0, theirs.eps], rtol=1e-3)
    errors = [each.made["held_out_errors"][-1]["geometric_mean"] for each in (found, expected)]
    assert errors[0] == pytest.approx(errors[1], rel=1e-2)
    assert error_of(["learn-sampler", "folder", "--num-steps", "2", *FEW], capsys).endswith("or delete it")
    cli.main(["sample", "folder", "--sampler", str(path), "-n", "1"])
    assert Path("folder_learned_2_n1_seed0.png").is_file()


def test_the_picture_is_named_after_the_file(run):
    cli.main(["sample", str(run), "--sampler", str(run / "samplers" / "learned_2.json"), "-n", "1"])
    assert (run / "step200_learned_2_n1_seed0.png").is_file()


def test_a_sampler_is_shown(run, capsys):
    cli.main(["samplers", "show", str(run / "samplers" / "learned_2.json")])
    out = capsys.readouterr().out
    assert re.search(r"X <- 1 Z\nt= *\d+\.\d+ alpha=.*R1 <- \+1 X0\nt=.*X <- [+-].* R1 ", out)
    for option in (["--num-steps", "5"], ["--grid", "karras"], ["--schedule.name", "cosine"]):
        with pytest.raises(SystemExit):
            cli.main(["samplers", "show", str(run / "samplers" / "learned_2.json"), *option])
        assert "learned_2.json has its own steps: --num-steps, --grid and" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, message",
    [
        ([], r"learned_2\.json exists: choose another --name, or delete it"),
        (["--start", "ddin"], r"learned_2\.json exists"),  # before anything else is looked at
        (["--num-steps", "0"], r"num_steps must be at least 1, got 0"),
        (
            ["--name", "x", "--num-steps", "1000"],
            r"num_steps must be below the 1000 timesteps of the schedule, got 1000",
        ),
        (["--num-pairs", "12"], r"num_pairs must be a multiple of batch_size, got 12 and 8"),
        (["--name", "a/b"], r"name must be that of a file without a directory, got 'a/b'"),
        (["--start-grid", "quad"], r"start_grid is for start, got 'quad' without it"),
        (["--name", "x", "--start", "ddin"], r"unknown sampler 'ddin'; did you mean 'ddim'"),
        (["--name", "x", "--start", "heun"], r"start must call the network 2 times, 'heun' does 3 times"),
        (["--name", "x", "--start", "ddpm"], r"a table that draws noise cannot be learned from"),
    ],
)
def test_a_users_error_is_one_line(options, message, run, capsys):
    before = sorted((run / "samplers").iterdir())
    assert re.search(message, error_of(["learn-sampler", str(run), "--num-steps", "2", *FEW, *options], capsys))
    assert sorted((run / "samplers").iterdir()) == before


@pytest.mark.parametrize(
    "options, message",
    [
        (["--num-steps", "3"], r"num_steps of .*learned_2\.json is 2, got 3"),
        (["--grid", "quad"], r"learned_2\.json has its own times, got grid 'quad'"),
        (["--timesteps", "5", "1"], r"learned_2\.json has its own times, got timesteps \(5, 1\)"),
        (["--sampler", "none.json"], r"no learned sampler none\.json"),
    ],
)
def test_what_sample_refuses(options, message, run, tmp_path, capsys):
    arguments = ["sample", str(run), "--out", str(tmp_path / "a.npz"), "-n", "1"]
    chosen = [] if "--sampler" in options else ["--sampler", str(run / "samplers" / "learned_2.json")]
    assert re.search(message, error_of([*arguments, *chosen, *options], capsys))
    assert not list(tmp_path.iterdir())


def test_learning_that_does_not_help_writes_nothing(run, monkeypatch):
    def worse(*arguments, **options):
        found = fit.fit(*arguments, **options)
        return found._replace(numbers=found.numbers._replace(keep=found.numbers.keep + 10))

    monkeypatch.setattr(command, "fit", worse)
    arguments = command.LearnArguments(
        str(run), num_steps=2, name="worse", num_pairs=8, num_held_out=8, batch_size=8, num_updates=1, teacher_steps=8,
        start="ddim",
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"learning did not help: held-out error .*; nothing is written"):
        command.run(arguments, Silent())
    assert not (run / "samplers" / "worse.json").exists()


def test_the_search_begins_with_the_first_tables_different_times():
    tables = [("deis", "quad"), ("unipc", "trailing"), ("ddim", "quad"), ("ddim", "trailing"), ("ddim", "karras")]
    items = [HandMade(name, grid, make_table(name, schedules.linear(), 4, grid)) for name, grid in tables]
    found = command._grids(items)
    for times, item in zip(found, [items[0], items[1], items[4]], strict=True):
        np.testing.assert_array_equal(times, item.table.rows.time)


def test_a_table_whose_images_are_not_finite_is_last():
    table = make_table("ddim", schedules.linear(), 2)
    items = [HandMade("ddim", "own", table, fit.Errors(error, 1.0)) for error in (0.3, np.nan, 0.2, np.inf)]
    found = sorted(items, key=lambda item: item.error("geometric_mean"))
    assert [item.errors.geometric_mean for item in found[:2]] == [0.2, 0.3]
    assert [item.error("rms") for item in items] == [1, 1, 1, 1]


@pytest.mark.slow
def test_it_begins_with_the_best_of_all(run):
    """Of every sampler on every grid by name, measured here again one by one."""
    report = Silent()
    arguments = command.LearnArguments(
        str(run), num_steps=2, name="best", num_pairs=8, num_held_out=8, batch_size=8, num_updates=6, teacher_steps=8
    )
    command.run(arguments, report)
    begun_with = json.loads((run / "samplers" / "best.json").read_text())["made"]["begun_with"]
    source = opening.open(run, print)
    net = command.network_of(source)
    training = fit.Pairs(fit.pair_key(0), 0, fit.draw(net, make_table("unipc", source.schedule, 8, "karras"),
                                                      fit.pair_key(0), 0, 8, 8))  # fmt: skip
    errors = {
        f"{name} on {grid}": fit.errors_of(net, make_table(name, source.schedule, 2, grid), training, 8).geometric_mean
        for name, grid in [("ddim", "sections"), ("ddim", "quad"), ("unipc", "karras"), begun_with.split(" on ")]
    }
    assert min(errors, key=lambda name: errors[name]) == begun_with
