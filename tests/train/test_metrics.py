"""A run's numbers: what is kept when a run goes on, and TensorBoard's events."""

import json

import pytest

from ddpm_jax.train.metrics import MetricsLog, read_metrics


def test_a_resumed_run_drops_what_it_will_compute_again(tmp_path):
    log = MetricsLog(tmp_path, 0)
    for step in (2, 4, 6):
        log.write(step, {"loss": float(step)}, batch_size=8)
    log.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 8, "lo')  # cut off by a kill
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [2, 4, 6]
    log = MetricsLog(tmp_path, 4)
    log.write(6, {"loss": 0.5}, batch_size=8)
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(2, 2.0), (4, 4.0), (6, 0.5)]


def test_tensorboard_reads_the_events(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from tensorboard.util import tensor_util

    log = MetricsLog(tmp_path, 0)
    log.write(3, {"loss": 0.25, "vlb": 2.0}, batch_size=8)
    log.close()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    (loss,) = events.Tensors("loss")
    assert (loss.step, float(tensor_util.make_ndarray(loss.tensor_proto))) == (3, 0.25)
