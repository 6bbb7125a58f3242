"""Files of statistics: pytorch-fid's, ADM's and our own."""

import numpy as np
import pytest

from ddpm_jax.evaluate.samples import frechet, moments, statistics
from ddpm_jax.evaluate.samples.statistics import Statistics

RNG = np.random.default_rng(0)
FEATURES = moments.of(RNG.standard_normal((40, 6))).gaussian
SPATIAL = moments.of(RNG.standard_normal((40, 3))).gaussian
ABOUT = {"network": "inception", "sha256": "abc123", "data": "digits"}


def same(a, b):
    np.testing.assert_array_equal(a.mean, b.mean)
    np.testing.assert_array_equal(a.covariance, b.covariance)
    return a.count == b.count


def test_what_is_written_is_read(tmp_path):
    statistics.write(tmp_path / "a.npz", Statistics(FEATURES, SPATIAL, ABOUT))
    found = statistics.read(tmp_path / "a.npz")
    assert same(found.features, FEATURES)
    assert found.spatial is not None and same(found.spatial, SPATIAL)
    assert found.about == ABOUT
    assert frechet.distance(found.features, FEATURES) == 0
    statistics.write(tmp_path / "b.npz", Statistics(FEATURES, None, ABOUT))
    assert statistics.read(tmp_path / "b.npz").spatial is None


def test_other_programs_read_what_is_written(tmp_path):
    """pytorch-fid reads file["mu"], file["sigma"]; ADM's evaluator mu_s and sigma_s too; neither unpickles."""
    statistics.write(tmp_path / "a.npz", Statistics(FEATURES, SPATIAL))
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        assert set(file.files) == {"mu", "sigma", "mu_s", "sigma_s", "meta"}
        np.testing.assert_array_equal(file["mu"], FEATURES.mean)
        np.testing.assert_array_equal(file["sigma_s"], SPATIAL.covariance)
        assert file["sigma"].dtype == np.float64


def test_their_files_are_read(tmp_path):
    """Of pytorch-fid: mu and sigma; of ADM: float32 means, and the images themselves, which are left there."""
    np.savez(tmp_path / "fid.npz", mu=FEATURES.mean, sigma=FEATURES.covariance)
    found = statistics.read(tmp_path / "fid.npz")
    assert (found.spatial, found.features.count, found.about) == (None, None, {})
    names = {
        "mu": FEATURES.mean.astype(np.float32),
        "sigma": FEATURES.covariance,
        "arr_0": np.zeros((2, 4, 4, 3), np.uint8),
    }
    np.savez(tmp_path / "adm.npz", mu_s=SPATIAL.mean, sigma_s=SPATIAL.covariance, **names)
    found = statistics.read(tmp_path / "adm.npz")
    assert found.features.mean.dtype == np.float64
    assert found.spatial is not None


def test_statistics_of_another_network_are_refused():
    said = Statistics(FEATURES, None, ABOUT)
    said.require("inception", "abc123")
    Statistics(FEATURES).require("inception", "abc123")  # unknown
    with pytest.raises(ValueError, match=r"^the statistics are of inception with weights abc123, and the features of "
                                         r"efficientnet with weights 999: they cannot be compared$"):  # fmt: skip
        said.require("efficientnet", "999")


BAD = {
    "holds mu: statistics have mu and sigma": dict(mu=FEATURES.mean),
    "holds nothing: statistics have": dict(images=FEATURES.mean),
    "holds mu_s without sigma_s": dict(mu=FEATURES.mean, sigma=FEATURES.covariance, mu_s=SPATIAL.mean),
    "are floats, got float64 .6. and float64 .5, 5.": dict(mu=FEATURES.mean, sigma=FEATURES.covariance[:5, :5]),
    "are floats, got int64": dict(mu=np.ones(6, int), sigma=FEATURES.covariance),
    "mu or sigma is not finite": dict(mu=FEATURES.mean * np.nan, sigma=FEATURES.covariance),
    "sigma is not symmetric": dict(mu=FEATURES.mean, sigma=np.triu(FEATURES.covariance) + np.eye(6)),
    "meta is not JSON": dict(mu=FEATURES.mean, sigma=FEATURES.covariance, meta=np.array("{")),
    "meta is 3, no mapping": dict(mu=FEATURES.mean, sigma=FEATURES.covariance, meta=np.array("3")),
}


@pytest.mark.parametrize("said", BAD)
def test_what_is_no_statistics_is_refused_in_one_line(tmp_path, said):
    np.savez(tmp_path / "bad.npz", **BAD[said])
    with pytest.raises(ValueError, match=said) as raised:
        statistics.read(tmp_path / "bad.npz")
    assert "\n" not in str(raised.value) and "bad.npz" in str(raised.value)


def test_what_is_no_archive_is_refused_in_one_line(tmp_path):
    (tmp_path / "bad.npz").write_bytes(b"not an archive")
    with pytest.raises(ValueError, match=r"bad\.npz is no file of statistics"):
        statistics.read(tmp_path / "bad.npz")
    np.savez(tmp_path / "objects.npz", mu=np.array([{}]), sigma=FEATURES.covariance)
    with pytest.raises(ValueError, match=r"objects\.npz is no file of statistics"):
        statistics.read(tmp_path / "objects.npz")
    with pytest.raises(FileNotFoundError):
        statistics.read(tmp_path / "none.npz")
