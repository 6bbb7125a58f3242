"""Metrics while a run trains: those of `ddpm-jax evaluate` at the same step, on any number of devices and processes."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from ddpm_jax import cli, pictures
from ddpm_jax.config.evaluate import EvaluateConfig
from ddpm_jax.config.run import Config, OptimizerConfig, SampleConfig, ScheduleConfig, TrainConfig, UNetConfig
from ddpm_jax.evaluate import features
from ddpm_jax.host import processes
from ddpm_jax.train import loop
from ddpm_jax.train.metrics import read_metrics
from ddpm_jax.train.tasks import evaluated
from tests.cli.test_evaluate import simple


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    found = dataclasses.replace(features.of_function("simple", simple, (8, 8, 1)), batch=4)
    monkeypatch.setattr(features, "of_name", lambda name, **_: found)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    np.save(tmp_path / "pictures.npy", np.random.RandomState(0).randint(0, 256, (20, 8, 8, 1)).astype(np.uint8))


def config_of(tmp_path, **settings):
    return Config(
        data=dataclasses.replace(Config().data, name=str(tmp_path / "pictures.npy")),
        schedule=ScheduleConfig("linear", 25, {"beta_end": 0.2}),
        model=UNetConfig(channels=4, channel_multipliers=(1,), attention_resolutions=(), num_groups=2),
        optimizer=OptimizerConfig(learning_rate=0.1, warmup_steps=0, ema_decay=0.1),
        sample=SampleConfig(num_steps=2, num_images=2),
        evaluate=EvaluateConfig(
            **{"every": 2, "metrics": ("fid", "kid"), "num_images": 11, "batch_size": 2} | settings
        ),
        train=TrainConfig(num_steps=3, batch_size=8, log_every=3, checkpoint_every=2, seed=5),
    )


class Silent:
    start = step = metrics = lambda self, *_: None

    def __init__(self):
        self.said = []

    def say(self, message):
        self.said.append(message)


@pytest.mark.slow
def test_the_log_has_them(tmp_path, optax_promotes):
    """Every two steps and after the last, as `evaluate` says of the run afterwards."""
    report = Silent()
    loop.fit(config_of(tmp_path), tmp_path / "run", report)
    lines = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "kid" in line]
    assert [line["step"] for line in lines] == [2, 3] and lines[0]["kid"] != lines[1]["kid"]
    assert f"step 3: fid {lines[1]['fid']:.4g}, kid {lines[1]['kid']:.4g}" in report.said
    words = ["-n", "11", "--batch-size", "2", "--seed", "5", "--out", str(tmp_path / "out")]
    cli.main(["evaluate", str(tmp_path / "run"), *words])
    (path,) = (tmp_path / "out").rglob("fid-kid*.json")
    said = json.loads(path.read_text())["metrics"]
    assert {name: number["value"] for name, number in said.items()} == {name: lines[1][name] for name in said}


def test_shares_of_processes(tmp_path, monkeypatch, optax_promotes):
    """Two processes draw what one draws, each its own batches; pictures that are none are said, with no numbers."""
    config, told = config_of(tmp_path), []
    run = loop.prepare(config, jax.devices()[:1], say=told.append)
    params = jax.jit(run.init)().params
    whole, task = run.task.evaluate(params), run.task.evaluated
    assert evaluated.shares(11, 4, 2) == [(0, 4), (4, 11)] and evaluated.shares(2, 4, 3) == [(0, 0), (0, 0), (0, 2)]
    seen = []
    monkeypatch.setattr(processes, "gathered", lambda rows, most: seen.append(rows) or rows)
    monkeypatch.setattr(task, "_share", [(0, 4), (4, 11)])
    monkeypatch.setattr(task, "_numbers", lambda samples: {})
    for index in (0, 1):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        task(params)
    assert [len(rows) for rows in seen] == [4, 1, 7, 1]
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert task._numbers(evaluated.Held({"features": np.concatenate([seen[0], seen[2]])})) == whole
    monkeypatch.setattr(pictures.images, "not_finite", lambda x_0: np.array([0]))
    assert run.task.evaluate(params) == {}
    assert told[-1] == "2 of the 11 images drawn have NaN or infinity: no metrics of them"


def test_what_is_refused(tmp_path):
    for settings, said in (
        ({"every": None}, "evaluate.metrics is for evaluate.every, got .*without it"),
        ({"every": 0}, "evaluate.every must be at least 1, got 0"),
        ({"num_images": 1}, "evaluate.num_images must be at least 2, got 1"),
        ({"metrics": ("fit",)}, "unknown --evaluate.metrics 'fit'"),
        ({"metrics": ()}, "--evaluate.metrics must name at least one"),
        ({"metrics": ("sfid",)}, "sfid needs the spatial of a network, and --evaluate.features simple has features"),
        ({"against_images": 21}, "evaluate.against_images must be at most 20"),
    ):
        with pytest.raises(ValueError, match=said):
            loop.prepare(config_of(tmp_path, **settings), say=lambda message: None)
