"""`ddpm-jax parity`: planted differences are found and named, nothing is skipped, and files say what was measured."""

import importlib
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from ddpm_jax import cli, interop, opening
from ddpm_jax.samplers import grids
from ddpm_jax.samplers.catalogue import CATALOGUE
from ddpm_jax.samplers.configs import CLASSES
from ddpm_jax.tools.parity import (
    against,
    command,
    conventions,
    results,
    schedulers,
    search,
    tables,
    theirs,
    training,
)
from ddpm_jax.tools.parity import samplers as catalogue_cases
from ddpm_jax.tools.parity.ours import Setup
from ddpm_jax.tools.parity.results import Difference, along, relative
from tests.fuzz.common import make_run

DDIM = {"beta_start": 1e-4, "beta_end": 0.02, "clip_sample": False}


def compared(libraries, setup, num_steps=10, step_options=None, largest=2, scheduler=None, **settings):
    scheduler = scheduler or libraries.diffusers.DDIMScheduler(**DDIM | settings)
    scheduler.set_timesteps(num_steps)
    return catalogue_cases.against_scheduler(
        libraries, "samplers", "ours", "theirs", setup, scheduler, step_options, largest
    )


def ddim(**changes):
    return Setup("ddim", 10, spread=grids.leading, **changes)


# ---------------------------------------------------------------------------------------------------------- measures


def test_measures_by_hand():
    assert relative(np.array([1.0, 2.5]), np.array([1.0, -2.0])) == 4.5 / 2
    assert relative(np.zeros(2), np.zeros(2)) == 0 and relative(np.ones(2), np.zeros(2)) == np.inf
    assert relative(np.array([np.nan]), np.ones(1)) == np.inf and relative(np.ones(2), np.ones(3)) == np.inf
    steps = [np.array([1.0]), np.array([2.0]), np.array([4.0])]
    assert along(steps, [np.array([1.0]), np.array([2.5]), np.array([4.0])], 0.01) == Difference(0.5 / 2.5, 1)
    assert along(steps, steps, 0.0) == Difference(0.0, None)
    assert along(steps[:2], steps, 0.1) == Difference(np.inf, 2)


def test_the_fewest_conventions_win_and_impossible_setups_are_passed_over():
    def difference(setup):
        if setup.stride == "T // N":
            raise ValueError("cannot be")
        return 0.0 if setup.last == "first" and setup.clip == 1.0 else 1.0

    found = search.explain(ddim(), conventions.CONVENTIONS, difference, 1e-4)
    assert found is not None and set(found.names) == {
        "R2 clip_sample=True", "T4 set_alpha_to_one=False, or final_sigmas_type='sigma_min'"
    }  # fmt: skip
    assert search.explain(ddim(), conventions.CONVENTIONS, difference, 1e-4, largest=1) is None
    one = search.explain(ddim(clip=1.0), conventions.CONVENTIONS, difference, 1e-4)
    assert one is not None and one.names == ("T4 set_alpha_to_one=False, or final_sigmas_type='sigma_min'",)


def test_a_convention_changes_something_or_says_so():
    for name, change in conventions.CONVENTIONS.items():
        for setup in (ddim(), Setup("dpm_solver_pp_2m", 10), Setup("unipc_3", 10)):
            changed = change(setup)
            assert changed is None or changed != setup, name


# -------------------------------------------------------------------------------------------------------- named there


@pytest.mark.parametrize(
    ("setup", "settings", "options", "names", "first_step"),
    [
        (ddim(), {"set_alpha_to_one": False}, {}, ["T4 set_alpha_to_one=False"], 10),
        (
            ddim(clip=1.0),
            {"set_alpha_to_one": False, "clip_sample": True},
            {},
            ["T5 eps not re-derived", "T4 set_alpha_to_one=False"],
            None,
        ),
        (ddim(clip=1.0), {}, {}, ["R2 clip_sample=False"], None),
        (ddim(), {"prediction_type": "v_prediction"}, {}, ["prediction_type='v_prediction'"], 1),
        (ddim(), {"beta_schedule": "scaled_linear"}, {}, ["S2 beta_schedule='scaled_linear'"], 1),
        (ddim(), {"steps_offset": 1}, {}, ["T1 steps_offset=1"], None),
        (ddim(), {"timestep_spacing": "trailing"}, {}, ["T1 timestep_spacing='trailing'"], 1),
        (
            ddim(),
            {"timestep_spacing": "linspace"},
            {},
            ["T1 timestep_spacing='linspace'", "T3 steps from t to t - T // N"],
            1,
        ),
        (ddim(), {}, {"eta": 1.0}, ["T6 eta=1"], 1),
    ],
)
def test_a_planted_difference_is_named(setup, settings, options, names, first_step, libraries):
    result = compared(libraries, setup, step_options=options, **settings)
    assert result.verdict == "explained" and result.difference is not None and result.difference > 1e-4, result
    found = result.note.split(" with ")[1].split(" and ")
    assert len(found) == len(names) and all(f.startswith(name) for f, name in zip(found, names, strict=True)), result
    assert first_step is None or result.first_step == first_step


def test_no_difference_and_one_that_nothing_explains(libraries):
    assert compared(libraries, ddim()).verdict == "same"

    class Wrong(libraries.diffusers.DDIMScheduler):
        def step(self, *arguments, **options):
            found = super().step(*arguments, **options)
            found.prev_sample = found.prev_sample * (1.01 if arguments[1] == 500 else 1)
            return found

    result = compared(libraries, ddim(), scheduler=Wrong(**DDIM), largest=1)
    assert result.verdict == "different" and result.first_step == 5
    assert result.difference is not None and 1e-3 < result.difference < 0.1


def test_rounding_explains_what_theirs_shows_to_itself(libraries):
    result = schedulers.compare_one(libraries, "DPMSolverMultistepScheduler", {"beta_schedule": "squaredcos_cap_v2"})
    assert result.verdict in ("same", "explained")
    # As far off as no rounding moves a linear schedule.
    line = results.compared("samplers", "", "", Difference(0.1, 3), 1e-4)
    calls = theirs.Calls([np.ones((2, 4, 4, 3))] * 4, [0.0] * 3)
    again = lambda change: theirs.Calls([x * (1 + 1e-6) for x in calls.xs], calls.times)
    assert catalogue_cases.by_rounding(line, calls, again).verdict == "different"
    near = results.compared("samplers", "", "", Difference(9e-6, 3), 1e-7)
    assert catalogue_cases.by_rounding(near, calls, again).verdict == "explained"


# ------------------------------------------------------------------------------------------------------ all of them


def test_no_sampler_class_or_schedule_is_left_out():
    cases, elsewhere = set(catalogue_cases.CASES), set(catalogue_cases.ELSEWHERE)
    assert cases | elsewhere == set(CATALOGUE) and not cases & elsewhere
    assert set(schedulers.CONFIGURATIONS) == set(CLASSES)
    compared_schedules = {make.__name__ for make in tables.BETAS.values()} | set(tables.NOT_IN_DIFFUSERS)
    assert compared_schedules == set(tables.schedules.BY_NAME)


def test_no_recorded_run_is_left_out(shared_golden):
    assert {path.stem for path in (shared_golden / "training").glob("*.npz")} == set(training.RUNS)


@pytest.mark.parametrize("name", ["ddpm", "plms", "heun", "dpm_solver_pp_2m_sde", "unipc_3"])
def test_samplers_of_the_catalogue_are_those_of_diffusers(name, libraries):
    assert catalogue_cases.compare_one(libraries, name, catalogue_cases.CASES[name]).verdict == "same"


@pytest.mark.parametrize("name", ["DDIMScheduler", "RePaintScheduler", "EDMEulerScheduler", "SASolverScheduler"])
def test_presets_are_the_classes(name, libraries):
    for settings in schedulers.CONFIGURATIONS[name]:
        assert schedulers.compare_one(libraries, name, settings).verdict == "same"


# --------------------------------------------------------------------------------------------------------- the noise


def test_noise_is_given_once_a_step_and_put_back(libraries):
    torch, given = libraries.torch, np.arange(6.0).reshape(1, 1, 2, 3)
    original = torch.randn
    with theirs.noise_replaced(torch, given):
        drawn = torch.randn((1, 3, 1, 2), generator=None, dtype=torch.float32)
        np.testing.assert_array_equal(drawn.numpy().transpose(0, 2, 3, 1), given)
        with pytest.raises(RuntimeError, match="one draw"):
            torch.randn((1, 3, 1, 2))
    assert torch.randn is original
    with pytest.raises(RuntimeError, match=r"shape \(1, 3, 1, 2\)"), theirs.noise_replaced(torch, given):
        torch.randn(7)


# ---------------------------------------------------------------------------------------------------------- training


def test_a_training_step_that_differs_is_found(monkeypatch):
    arrays = {"a.weight": np.ones(3), "b.bias": np.ones(2), "to_k.bias": np.ones(2)}
    run = training.Trajectory([1.0, 0.5, 0.25], [2.0, 1.0, 0.5], arrays, arrays)
    meta = {"optimizer": {"name": "Adam"}, "ill_conditioned": ["to_k.bias"]}
    recording = training.Recording({}, meta, {}, run)
    found = run._replace(losses=[1.0, 0.5 * 1.0002, 0.25], final=arrays | {"to_k.bias": 9 * np.ones(2)})
    monkeypatch.setattr(training, "follow", lambda recording: found)
    losses, norms, final, average = training.compare_run("a run", recording)
    assert losses.verdict == "different" and losses.first_step == 1 and losses.difference == pytest.approx(2e-4)
    assert norms.verdict == final.verdict == average.verdict == "same"  # the ill-conditioned one is left out
    off = found._replace(average=arrays | {"b.bias": np.array([1.0, 1.002])})
    monkeypatch.setattr(training, "follow", lambda recording: off)
    assert [line.verdict for line in training.compare_run("a run", recording)][2:] == ["same", "different"]


@pytest.mark.slow
@pytest.mark.parametrize("name", training.RUNS)
def test_recorded_training_runs(name, shared_golden):
    for line in training.compare_run(name, training.read(shared_golden, name)):
        assert line.verdict == "same", line


# ------------------------------------------------------------------------------------------------------- the command


def test_files_hold_what_was_said(libraries, tmp_path, capsys):
    names = [f"--{kind}={tmp_path / 'a'}.{kind}" for kind in ("json", "html", "markdown")]
    cli.main(["parity", "--only", "schedules", *names])
    said, facts, page = capsys.readouterr().out, json.loads((tmp_path / "a.json").read_text()), (tmp_path / "a.html")
    rows, table = facts["results"], (tmp_path / "a.markdown").read_text()
    assert {"date", "machine", "versions"} <= facts.keys() and facts["versions"]["diffusers"] in said
    assert all(row["item"] in said and row["item"] in page.read_text() for row in rows)
    lines = [re.split(r"(?<!\\) \| ", line.strip("| ")) for line in table.splitlines() if line.startswith("|")]
    assert len(lines) == len(rows) + 2 and {len(line) for line in lines} == {6}
    assert [line[0] for line in lines[2:]] == [row["item"].replace("|", "\\|") for row in rows]
    counts = command.summary([results.Result(**row) for row in rows])
    assert counts in table and counts in said and f"    {facts['command']}\n" in table and facts["date"] in table
    assert {row["verdict"] for row in rows} == {"same", "explained", "not compared"}
    assert {row["item"] for row in rows if row["verdict"] == "not compared"} == set(tables.NOT_IN_DIFFUSERS)
    with pytest.raises(SystemExit) as stop:
        cli.main(["parity", "--only", "schedules", names[0]])
    assert stop.value.code == 2 and "a.json exists already" in capsys.readouterr().err


def test_random_configurations_follow_the_fixed_ones(libraries, monkeypatch, capsys):
    monkeypatch.setitem(command.GROUPS, "schedulers", lambda libraries: iter(()))
    cli.main(["parity", "--only", "schedulers", "--random", "2"])
    said = capsys.readouterr().out
    assert "random 0.0 | DDPMScheduler(" in said and "random 0.1 | DDPMParallelScheduler(" in said
    assert "2 items: 2 same" in said
    told = command.command_of(command.ParityArguments(only=("schedulers",), random=300))
    assert told.endswith("ddpm-jax parity --only schedulers --random 300")


def test_an_unexplained_difference_is_status_1(libraries, monkeypatch, capsys):
    monkeypatch.setitem(tables.BETAS, "linear", lambda length: tables.schedules.linear(length, beta_end=0.03))
    with pytest.raises(SystemExit) as stop:
        cli.main(["parity", "--only", "schedules"])
    assert stop.value.code == 1 and "| different" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--only", "sampler"], "unknown group of parity 'sampler'; did you mean 'samplers'?"),
        (["--golden", "nowhere"], "no folder nowhere"),
        (["--golden", ".", "--only", "samplers"], "--only samplers leaves out training"),
        (["--against", ".", "--only", "samplers"], "--against compares one folder"),
        (["--against", ".", "--random", "3"], "--only, --golden and --random belong to the whole report"),
        (["--random", "-1"], "--random must be at least 0, and 0 where schedulers are left out, got -1"),
        (["--only", "losses", "--random", "3"], "0 where schedulers are left out, got 3"),
    ],
)
def test_errors_on_one_line(options, message, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["parity", *options])
    error = capsys.readouterr().err.strip()
    assert stop.value.code == 2 and message in error and "\n" not in error


def test_without_pytorch_the_extra_is_named(monkeypatch, capsys):
    original = importlib.import_module

    def absent(name, *rest):
        if name in ("torch", "diffusers"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return original(name, *rest)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(SystemExit) as stop:
        cli.main(["parity", "--only", "schedules"])
    error = capsys.readouterr().err.strip()
    assert stop.value.code == 2 and "pip install 'ddpm_jax[parity]'" in error and "\n" not in error


@pytest.mark.slow
def test_a_folder_of_a_user(libraries, tmp_path):
    """Its network and scheduler are ours; what sets the scheduler apart from the paper's is named."""
    from tests.tools.parity.test_pipelines import written  # which needs PyTorch

    settings = {"_class_name": "DDIMScheduler", "beta_start": 1e-5, "beta_end": 1e-3, "set_alpha_to_one": False}
    written(tmp_path / "folder", libraries.torch, libraries.diffusers, "ddpm", scheduler_config=settings)
    network, scheduler, paper, together = against.compare(libraries, tmp_path / "folder", print)
    assert network.verdict == scheduler.verdict == together.verdict == "same", (network, scheduler, together)
    assert paper.verdict == "explained" and "T4 set_alpha_to_one=False" in paper.note and paper.item.startswith("ddim")
    assert all(line.group == "against" for line in (network, scheduler, paper, together))


def test_a_run_is_compared_as_the_folder_that_it_is_written_as(tmp_path):
    run = make_run(tmp_path)
    folder = against._folder(str(run), print, tmp_path / "folder")
    assert (folder / "unet" / "config.json").is_file() and against._folder(folder, print, tmp_path / "b") == folder
    jax.tree.map(np.testing.assert_array_equal, interop.load(folder).params, opening.open(run, print).params)


def test_the_command_is_told_without_places(monkeypatch, tmp_path):
    monkeypatch.setenv("XLA_FLAGS", "--flag=1 ")
    told = command.command_of(command.ParityArguments(golden=tmp_path, only=("losses", "training"), json=tmp_path))
    assert told == "XLA_FLAGS='--flag=1' ddpm-jax parity --only losses training --golden GOLDEN"
    monkeypatch.delenv("XLA_FLAGS")
    assert command.command_of(command.ParityArguments(against=str(tmp_path))) == "ddpm-jax parity --against SOURCE"


def test_the_table_of_the_documents_leaves_nothing_unexplained():
    table = (Path(__file__).parent.parent.parent / "docs" / "parity_table.md").read_text()
    rows = [
        line for line in table.splitlines() if line.startswith("|") and not line.startswith(("| item |", "| --- |"))
    ]
    verdicts = [row.split(" | ")[-1].strip("| ").split(":")[0] for row in rows]
    assert set(verdicts) == {"same", "explained", "not compared"} and f"\n{len(rows)} items: " in table


def test_summary_and_line():
    lines = [
        results.compared("samplers", "a", "B", Difference(0.5, 3), 1e-4),
        results.not_compared("samplers", "c", "", "why"),
    ]
    assert command.summary(lines) == "2 items: 0 same, 0 explained, 1 different, 1 not compared"
    assert command.line(lines[0]) == "  a | B | 5.0e-01 from step 3 | different"
    facts = {"command": "c", "date": "d", "machine": "m", "seconds": 1, "versions": {"numpy": "2"}}
    text = command.markdown(facts, [results.compared("losses", "log p(x | y)", "B", Difference(0.5, 3), 1e-4)])
    assert "## losses" in text and "| log p(x \\| y) | B | 5.0e-01 | 1.0e-04 | 3 | different |" in text
