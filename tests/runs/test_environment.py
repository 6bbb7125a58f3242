"""What a run is told when it goes on under other versions or on another machine."""

import json

import jax
import pytest

from ddpm_jax.config.run import Config
from ddpm_jax.host import processor
from ddpm_jax.runs import environment
from ddpm_jax.runs.checkpoint import RunInfo


def test_what_bits_depend_on_is_compared_with_the_start_before(tmp_path, monkeypatch):
    environment.record(tmp_path, 0)
    assert environment.changes(tmp_path) == []
    environment.record(tmp_path, 2)
    assert environment.changes(tmp_path) == []
    monkeypatch.setattr(processor, "name", lambda: "Abacus 9")
    environment.record(tmp_path, 4)
    [change] = environment.changes(tmp_path)
    assert change.startswith("processor ") and change.endswith(", now Abacus 9")
    environment.record(tmp_path, 6)
    assert environment.changes(tmp_path) == []


@pytest.mark.parametrize(
    "edit, expected",
    [
        (lambda first: first["versions"].update(jax="0.9.1"), "jax 0.9.1, now "),
        (lambda first: first.update(devices="4 x TPU v4"), "kind of device TPU v4, now "),
        (
            lambda first: first["settings"].update(jax_default_matmul_precision="highest"),
            "jax_default_matmul_precision highest, now None",
        ),
        (lambda first: first.pop("settings"), None),
        (lambda first: first.pop("processor"), None),  # as lines of before it was recorded
        (lambda first: first.update(git_commit="abc", processes=7, devices="64 x cpu"), None),
    ],
)
def test_of_another_machine(edit, expected, tmp_path):
    environment.record(tmp_path, 0)
    path = tmp_path / "environment.jsonl"
    first = json.loads(path.read_text())
    edit(first)
    path.write_text(json.dumps(first) + "\n")
    environment.record(tmp_path, 2)
    assert [change[: len(expected)] for change in environment.changes(tmp_path)] == ([expected] if expected else [])


def test_a_line_cut_by_a_kill_says_nothing(tmp_path):
    (tmp_path / "environment.jsonl").write_text('{"versions": {"jax": "0.9\n')
    environment.record(tmp_path, 0)
    assert environment.changes(tmp_path) == []


def test_data_versions_and_settings_make_a_run(optimized):
    """Plain JSON values, and the same in every process that may train together."""
    info = RunInfo(Config(), (8, 8, 1), 9, {"image": "0123"})
    found = environment.decisive(info)
    assert json.loads(json.dumps(found)) == found
    assert found["num_examples of the data"] == 9 and found["fingerprint of the images"] == "0123"
    assert found["generator"] == "threefry2x32" and found["jax"] == jax.__version__
    with jax.default_matmul_precision("highest"):
        jax.config.update("jax_disable_most_optimizations", True)  # the fixture puts it back
        other = environment.decisive(info)
    changed = {"jax_default_matmul_precision", "jax_disable_most_optimizations"}
    assert {name for name in found if found[name] != other[name]} == changed
