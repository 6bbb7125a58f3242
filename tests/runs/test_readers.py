"""Readers of a run whose training goes on, keeps one checkpoint, and deletes what is being read."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from ddpm_jax import cli
from ddpm_jax.config.run import SampleConfig
from ddpm_jax.runs import checkpoint, sealing
from ddpm_jax.train import loop
from tests.runs.small import small_run


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("home"), SampleConfig(num_steps=2, num_images=4), num_steps=2)


@pytest.fixture
def run(made, tmp_path):
    return shutil.copytree(made, tmp_path / "run")


def goes_on(run, monkeypatch, before, module, name):
    """The first call of module.name finds checkpoint 2 replaced by 4: before it begins, or when it has ended."""
    original = getattr(module, name)

    def replaced(*arguments):
        monkeypatch.setattr(module, name, original)
        found = None if before else original(*arguments)
        folder = run / "checkpoints"
        shutil.copytree(folder / "2", folder / "4")
        shutil.rmtree(folder / "2")
        return original(*arguments) if before else found

    monkeypatch.setattr(module, name, replaced)


MOMENTS = {
    "listed": (True, sealing, "damage"),
    "the seal is read": (True, sealing, "_contents"),
    "a file is summed": (True, sealing, "crc32"),
    "all is summed": (False, sealing, "_contents"),
    "read": (True, checkpoint.Saved, "read"),
    "the shapes are known": (False, checkpoint.Saved, "misfits"),
    "read to the end": (False, checkpoint.Saved, "read"),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_checkpoint_that_goes_while_it_is_read(run, monkeypatch, moment):
    info = checkpoint.load_run(run)
    template = jax.eval_shape(loop.prepare(info.config).init).ema_params
    expected = checkpoint.restore_ema_and_step(run, template, pytest.fail)[0]
    goes_on(run, monkeypatch, *MOMENTS[moment])
    said = []
    found, step = checkpoint.restore_ema_and_step(run, template, said.append)
    assert step == 4 and all("went away while it was read: looking again" in line for line in said)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_only_a_part_of_it_is_left(run, monkeypatch):
    """What is read without an error may be zeros: it is not taken."""
    info = checkpoint.load_run(run)
    template = jax.eval_shape(loop.prepare(info.config).init).ema_params
    folder, read = run / "checkpoints", checkpoint.Saved.read

    def half_deleted(self, step, templates):
        if step == 4:
            return read(self, step, templates)
        shutil.copytree(folder / "2", folder / "4")
        next((folder / "2" / "opt_state").glob("d/*")).unlink()
        return {name: "zeros" for name in templates}

    monkeypatch.setattr(checkpoint.Saved, "read", half_deleted)
    found, step = checkpoint.restore_ema_and_step(run, template, [].append)
    assert step == 4 and found != "zeros"


def test_one_that_is_there_is_not_read_twice(run):
    """An error that has another reason is that of the reader."""
    calls = []
    with pytest.raises(KeyError, match="mine"):
        checkpoint.Saved(run).newest(lambda step: calls.append(step) or {}["mine"], pytest.fail)
    assert calls == [2]


@pytest.mark.parametrize("command", ["sample RUN -n 1", "nll RUN -n 1 --num-steps 2", "convert RUN OUT"])
def test_commands_look_again(run, tmp_path, monkeypatch, capsys, command):
    goes_on(run, monkeypatch, True, checkpoint.Saved, "read")
    cli.main(command.replace("RUN", str(run)).replace("OUT", str(tmp_path / "folder")).split())
    assert "went away while it was read: looking again" in "".join(capsys.readouterr())


def test_a_run_that_begins_from_one_looks_again(run, tmp_path, monkeypatch, capsys):
    train = dataclasses.replace(
        checkpoint.load_run(run).config.train, begin_from=str(run), begin_with="ema", num_steps=4
    )
    config = dataclasses.replace(checkpoint.load_run(run).config, train=train)
    prepared = loop.prepare(config)
    goes_on(run, monkeypatch, True, checkpoint.Saved, "read")
    said = []
    with jax.numpy_dtype_promotion("standard"):
        _, step = loop.begin.first_state(train, prepared.template(), prepared.start, said.append)
    assert step == 4 and any("looking again" in line for line in said)


def test_reading_makes_nothing(run):
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        checkpoint.Saved(run)
    assert not (run / "checkpoints").exists()
