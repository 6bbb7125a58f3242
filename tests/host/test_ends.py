"""Several processes of which one is lost, fails or was told otherwise, for real: all end, and say in one line why."""

import re
import signal

import pytest

from tests.host.test_processes import LONG, ended, interrupted, launch

pytestmark = pytest.mark.slow
WAIT = ("--wait-seconds", 20)


@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_process_ends_the_others(tmp_path, lost):
    """Within 60 seconds, with one line that names it."""
    send = [signal.SIGKILL if i == lost else 0 for i in range(2)]
    results = ended(interrupted(tmp_path / "run", 2, 2, send, 3, *LONG, task="least_squares"), timeout=60)
    status, out, err = results[1 - lost]
    assert results[lost][0] == -signal.SIGKILL and status == 2
    assert f"(process {1 - lost} of 2, on " in out
    assert re.search(rf"ddpm-jax: process {lost} \(pid \d+ on [^\n]+\) was lost\n$", err), err
    assert "Traceback" not in err and "***" not in err


@pytest.mark.parametrize(
    "options, message",
    [
        (("--optimizer.learning-rate", 0.5), "process 1 has --optimizer.learning-rate 0.5 where process 0 has 0.001: "),
        (("--train.num-steps", 40), "process 1 has --train.num-steps 40 where process 0 has 50: "),
        (("--data.split", "test"), "process 1 has --data.split test where process 0 has train: "),
    ],
)
def test_processes_that_were_told_otherwise(tmp_path, options, message):
    """They end before anything is made, with one line that names the process, the setting and both values."""
    others = launch(tmp_path / "run", 2, 1, *WAIT, task="least_squares", last=options)
    for status, _, err in ended(others, 60):
        assert status == 2 and message in err.splitlines()[-1], err
    assert not (tmp_path / "run").exists()


def test_a_process_whose_jax_is_set_otherwise(tmp_path):
    variables = {"JAX_DEFAULT_MATMUL_PRECISION": "highest"}
    others = launch(tmp_path / "run", 2, 1, *WAIT, task="least_squares", environment=variables)
    for status, _, err in ended(others, 60):
        message = "process 1 has jax_default_matmul_precision highest where process 0 has none: they must"
        assert status == 2 and message in err.splitlines()[-1], err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "numbers, n, message",
    [
        ((0, 0), 2, "two processes have --process-id 0: process 0 (pid "),
        ((0, 1, 1), 3, "two processes have --process-id 1: process 1 (pid "),
        ((1, 1), 2, "in vain for process 0 of 2 to start at localhost:"),
        ((0, 1), 3, "in vain for process 2 of 3 to start; --wait-seconds may be larger"),
    ],
)
def test_processes_that_do_not_meet(tmp_path, numbers, n, message):
    for status, _, err in ended(launch(tmp_path / "run", n, 1, *WAIT, task="least_squares", numbers=numbers), 60):
        assert status == 2 and message in err.splitlines()[-1], err


def test_an_error_of_the_first_process_is_everyones(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for status, _, err in ended(launch(tmp_path, 2, 1), 60):
        assert status == 2 and f"{tmp_path} is not empty and holds no run (no config.json)" in err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
