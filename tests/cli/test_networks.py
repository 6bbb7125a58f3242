"""Every network that draws, through the command line: train, go on, sample, nll, other averages, convert."""

import json

import numpy as np
import pytest

from ddpm_jax import cli
from ddpm_jax.config.tasks import TASKS

SMALL = {
    "dit": "--model.width 8 --model.depth 2 --model.num-heads 2 --model.patch-size 4 --model.dtype bfloat16"
    " --objective.loss hybrid --objective.variance learned_range --sample.sampler ddpm_learned_range",
    "uvit": "--model.width 8 --model.depth 3 --model.num-heads 2 --model.patch-size 4 --model.remat --model.time-mlp",
}
COMMON = (
    "--schedule.num-timesteps 20 --schedule.arguments beta_end 0.3 --train.batch-size 8 --sample.num-images 2"
    " --sample.num-steps 2 --train.average-every 1 --optimizer.ema-sigmas 0.1 0.2 --optimizer.name adamw"
)
# Which of diffusers' classes would be needed.
REFUSED = {"dit": "diffusers has no DiT without classes", "uvit": "diffusers has no class for a UViT"}


pytestmark = pytest.mark.usefixtures("optax_promotes")


@pytest.mark.parametrize("name", sorted(set(TASKS["diffusion"].networks) - {"unet"}))
def test_a_network_through_every_command(name, tmp_path, capsys):
    run = tmp_path / "run"
    command = ["train", "--model", name, *SMALL[name].split(), *COMMON.split(), "--workdir", str(run)]
    cli.main([*command, "--train.num-steps", "2"])
    assert f"--model {name} --model.width 8 --model.depth" in capsys.readouterr().out
    cli.main([*command, "--train.num-steps", "4"])
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [2, 4]
    drawn = {}
    for average in ([], ["--ema-sigma", "0.15"]):
        pictures = tmp_path / f"{len(average)}.npz"
        cli.main(["sample", str(run), "-n", "2", "--out", str(pictures), *average])
        drawn[len(average)] = dict(np.load(pictures))["images"]
        assert drawn[len(average)].shape == (2, 8, 8, 1)
    assert "average of sigma_rel 0.15 at step 4" in capsys.readouterr().out
    assert (drawn[0] != drawn[2]).any()
    cli.main(["nll", str(run), "-n", "2", "--batch-size", "2", "--optimal-steps", "2"])
    (summary,) = run.glob("nll/*/summary.json")
    assert 0 < json.loads(summary.read_text())["bits_per_dim"]["total"]["mean"] < 100
    capsys.readouterr()
    with pytest.raises(SystemExit):
        cli.main(["convert", str(run), str(tmp_path / "folder")])
    error = capsys.readouterr().err
    assert REFUSED[name] in error and error.count("\n") == 1 and not (tmp_path / "folder").exists()
