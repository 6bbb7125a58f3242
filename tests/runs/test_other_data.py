"""Runs whose data have changed since they began."""

import dataclasses
import json
import re

import numpy as np
import pytest

from ddpm_jax.config.run import DataConfig
from tests.runs.test_checkpoint import CONFIG, fit, with_steps
from tests.train.tasks import least_squares

pytestmark = pytest.mark.usefixtures("optax_promotes")


def test_other_data_under_the_same_name_are_refused(tmp_path):
    """Pictures that have become black, and fewer of them; the same ones, stored otherwise, are no others."""
    pictures = np.random.RandomState(0).randint(0, 256, (9, 8, 8, 1)).astype(np.uint8)
    name, run = tmp_path / "x.npy", tmp_path / "run"
    config = with_steps(1, dataclasses.replace(CONFIG, data=DataConfig(name=str(name))))
    np.save(name, pictures)
    fit(run, config, least_squares)
    np.save(name, np.where(np.arange(9)[:, None, None, None] < 6, 0, pictures).astype(np.uint8))
    with pytest.raises(ValueError, match="belongs to other data") as error:
        fit(run, config, least_squares)
    said = r"\(images of the data: fingerprint \w{8}, now \w{8}\); bring those back, choose another --workdir, or go on"
    assert re.search(f"{said} .* the same command with --train.begin-from {run} ", str(error.value)), error.value
    np.save(name, pictures[:8])
    with pytest.raises(ValueError, match="num_examples of the data: 9, now 8"):
        fit(run, config, least_squares)
    np.save(name, np.asfortranarray(pictures))
    assert fit(run, config, least_squares).said == []


def test_a_run_of_before_there_were_fingerprints_goes_on_and_has_one_then(tmp_path):
    again = lambda: fit(tmp_path / "run", with_steps(1), least_squares).said
    again()
    path = tmp_path / "run" / "config.json"
    values = json.loads(path.read_text())
    assert values.pop("fingerprint").keys() == {"image"}
    path.write_text(json.dumps(values))
    [said] = again()
    assert "does not say which data it began with" in said
    assert "fingerprint" in json.loads(path.read_text()) and again() == []
