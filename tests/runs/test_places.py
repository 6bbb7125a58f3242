"""Where a run lies: links that lead nowhere, pipes, what a full disk has left, more steps than are asked for."""

import os
import re
from pathlib import Path

import pytest

from ddpm_jax import cli, data, interop
from ddpm_jax.config.run import Config, ScheduleConfig
from ddpm_jax.host.storage import make_directory
from ddpm_jax.train.tasks import diffusion
from tests.helpers import assert_train_refuses
from tests.runs.test_checkpoint import fit, with_steps
from tests.train.tasks import least_squares

pytestmark = pytest.mark.usefixtures("optax_promotes")


def test_a_link_that_leads_nowhere(tmp_path, monkeypatch, capsys):
    """As the run's directory, and on the way to it; nothing is made where it points to."""
    monkeypatch.chdir(tmp_path)
    Path("link").symlink_to("gone")
    for place in ("link", "link/run"):
        assert_train_refuses(f"--workdir {place}", "ddpm-jax: link is a link to gone, which is not there$", capsys)
    with pytest.raises(FileNotFoundError, match="link is a link to gone"):
        make_directory(Path("link/a/b"))
    assert [path.name for path in tmp_path.iterdir()] == ["link"]
    Path("gone").mkdir()
    make_directory(Path("link/a"))
    assert Path("gone/a").is_dir()


@pytest.mark.parametrize("read", [lambda path: data.load(str(path)), interop.load])
@pytest.mark.parametrize("link", [False, True])
def test_a_pipe_is_not_waited_for(tmp_path, read, link):
    pipe = tmp_path / "pipe.npz"
    os.mkfifo(pipe)
    if link:
        (tmp_path / "link.npz").symlink_to(pipe)
        pipe = tmp_path / "link.npz"
    with pytest.raises(ValueError, match=rf"{re.escape(str(pipe))} is a pipe or a device, and no file"):
        read(pipe)


def test_what_was_not_finished_goes_at_the_next_start(tmp_path):
    """Of the run; what somebody else writes there meanwhile, as `sample` does, stays."""
    run, config = tmp_path / "run", with_steps(2)
    fit(run, config, least_squares)
    (run / "samples").mkdir(exist_ok=True)
    left = ["metrics.jsonl.partial", "samples.png.partial", "samples/step_0000002.png.partial", "config.json.partial"]
    for name in [*left, "ddim_50_seed0.png.partial"]:
        (run / name).write_text("half of i")
    cut = run / "checkpoints" / "4.orbax-checkpoint-tmp"
    (cut / "params").mkdir(parents=True)
    fit(run, with_steps(4), least_squares)
    assert [path.name for path in run.rglob("*.partial")] == ["ddim_50_seed0.png.partial"]
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["2", "4"]


def test_more_steps_than_are_asked_for(tmp_path, monkeypatch, capsys):
    """The run has 3, and 2 are asked for."""
    monkeypatch.setattr("ddpm_jax.train.loop.fit", lambda config, workdir, report: 3)
    for asked, said in (
        ("3", "trained for 3 steps; pictures"),
        ("2", "trained for 3 steps, which is more than --train"),
    ):
        cli.main(["train", "--workdir", str(tmp_path / "run"), "--train.num-steps", asked])
        assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    "name, num_timesteps, said",
    [("linear", 100, "linear with 100 steps ends at 0.6 of the image"), ("linear", 1000, None), ("cosine", 100, None),
     ("linear_rescaled", 100, None)],
)  # fmt: skip
def test_a_schedule_that_ends_far_from_noise(name, num_timesteps, said):
    lines: list[str] = []
    diffusion.make(Config(schedule=ScheduleConfig(name, num_timesteps)), lines.append)
    assert [said in line for line in lines if "samplers begin with noise" in line] == ([] if said is None else [True])
