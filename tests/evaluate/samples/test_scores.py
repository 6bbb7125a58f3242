"""Inception score, CMMD, CLIP score: closed forms, then torch-fidelity's, ADM's, CMMD's and torchmetrics' numbers."""

import numpy as np
import pytest

from ddpm_jax.evaluate.samples import clip_score, cmmd, inception_score

RNG = np.random.default_rng(0)


def test_the_inception_score_of_certain_images_is_the_number_of_their_classes():
    logits = np.eye(5)[np.arange(100) % 5] * 1e4  # e^-10000 is 0: no logarithm of it is taken
    found = inception_score.by_splits(logits, splits=4, shuffle=False)
    assert found.value == pytest.approx(5, rel=1e-12)
    assert found.spread == pytest.approx(0, abs=1e-12)
    assert inception_score.by_splits(np.ones((50, 7)), splits=5).value == pytest.approx(1, rel=1e-12)
    by_class = logits[np.argsort(np.arange(100) % 5)]  # in that order each part holds one class, and scores 1
    assert inception_score.by_splits(by_class, splits=5, shuffle=False).value == pytest.approx(1, rel=1e-12)
    assert inception_score.by_splits(by_class, splits=5).value > 4
    assert inception_score.by_size(by_class, size=20).value == pytest.approx(1, rel=1e-12)
    assert inception_score.by_size(by_class, size=5000).value == pytest.approx(5, rel=1e-12)


def test_the_inception_score_is_exp_of_the_mutual_information():
    logits = RNG.standard_normal((700, 6)) * 2  # more than one block
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = np.exp(np.mean(np.sum(p * np.log(p / p.mean(0)), 1)))
    one = inception_score.by_splits(logits, splits=1)
    assert one.value == pytest.approx(expected, rel=1e-12)
    assert np.isnan(one.standard_error)
    two = inception_score.by_splits(logits, splits=2)
    assert two.standard_error == pytest.approx(two.spread)  # |a - b| / 2, both
    assert inception_score.by_splits(logits + 1e5, splits=1).value == pytest.approx(expected, rel=1e-9)


CASES = [dict(), dict(shuffle=False), dict(splits=3, seed=7), dict(splits=1, shuffle=False)]


@pytest.mark.parametrize("case", range(4))
def test_torch_fidelitys_inception_scores(shared_golden, case):
    with np.load(shared_golden / "metrics" / "feature_metrics.npz") as file:
        found = inception_score.by_splits(file["logits"], **CASES[case])
        np.testing.assert_allclose([found.value, found.spread], file[f"isc{case}"], rtol=1e-10, atol=1e-12)


def test_torch_fidelitys_default_inception_score(shared_golden):
    draws = np.random.RandomState(9001)
    draws.standard_normal((1100 + 1300, 32))
    found = inception_score.by_splits((2 * draws.standard_normal((500, 1008))).astype(np.float32))
    with np.load(shared_golden / "metrics" / "feature_metrics.npz") as file:
        np.testing.assert_allclose([found.value, found.spread], file["big.isc_default"], rtol=1e-10)


def test_adms_inception_scores(shared_golden):
    """Its probabilities and their sums are float32."""
    with np.load(shared_golden / "metrics" / "openai_evaluator.npz") as file:
        logits = file["ref"] @ file["softmax_w"]
        for size, name in ((5000, "inception_score"), (40, "inception_score_split40")):
            assert inception_score.by_size(logits, size=size).value == pytest.approx(float(file[name]), rel=1e-6)


def test_cmmd_of_points_at_two_places():
    """1000 (2 - 2 exp(-r^2 / 200)), whatever N; and 0 for equal sets."""
    x, y = np.zeros((30, 3)), np.tile([3.0, 0, 4], (20, 1))
    assert cmmd.distance(x, y) == pytest.approx((1000 * (2 - 2 * np.exp(-25 / 200)), 0))
    assert cmmd.distance(x, y, sigma=1.0).value == pytest.approx(1000 * (2 - 2 * np.exp(-25 / 2)))
    x = RNG.standard_normal((600, 8))
    assert cmmd.distance(x, x.copy()).value == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("case", range(3))
def test_cmmds_numbers(shared_golden, case):
    with np.load(shared_golden / "metrics" / "cmmd.npz") as file:
        found = cmmd.distance(file[f"m{case}.x"], file[f"m{case}.y"])
        assert found.value == pytest.approx(float(file[f"m{case}.cmmd_float64"]), rel=1e-10)


def test_clip_score_is_the_mean_cosine():
    angles = np.array([0.0, 60, 90, 180]) * np.pi / 180
    images = 3 * np.stack([np.cos(angles), np.sin(angles)], 1)
    texts = np.tile([5.0, 0], (4, 1))
    found = clip_score.of(images, texts)
    assert found.value == pytest.approx(100 * (1 + 0.5 + 0 - 1) / 4)
    assert found.standard_error == pytest.approx(100 * np.std(np.cos(angles), ddof=1) / 2)
    assert clip_score.of(-images, texts).value == 0  # never below
    assert clip_score.of(images, texts, convention="paper").value == pytest.approx(2.5 * (1 + 0.5) / 4)


def test_torchmetrics_clip_score(shared_golden):
    with np.load(shared_golden / "metrics" / "clip_score.npz") as file:
        found = clip_score.of(file["image_features"], file["text_features"])
        assert found.value == pytest.approx(float(file["clip_score_mean"]), rel=1e-6)
        pairs = [clip_score.of(file["image_features"][[i, i]], file["text_features"][[i, i]]).value for i in range(2)]
        np.testing.assert_allclose(pairs, file["clip_score_per_pair"][:2], rtol=1e-5)  # float32


def test_bad_input_in_one_line():
    x = RNG.standard_normal((5, 2))
    with pytest.raises(ValueError, match=r"^splits must be from 1 to 5, the images there are, got 10$"):
        inception_score.by_splits(x)
    with pytest.raises(ValueError, match=r"^size must be at least 1, got 0$"):
        inception_score.by_size(x, size=0)
    with pytest.raises(ValueError, match=r"^logits: the features of image 0 are not finite$"):
        inception_score.by_size(x * np.inf)
    with pytest.raises(ValueError, match=r"^logits: at least 2 images are needed, got 1$"):
        inception_score.by_splits(x[:1])
    with pytest.raises(ValueError, match=r"^sigma must be positive, got 0$"):
        cmmd.distance(x, x, sigma=0)
    with pytest.raises(ValueError, match=r"^unknown estimator 'bias'; did you mean 'biased'\?"):
        cmmd.distance(x, x, estimator="bias")
    with pytest.raises(ValueError, match=r"^each image has one text: got \[5, 2\] and \[4, 2\] numbers$"):
        clip_score.of(x, x[:4])
    with pytest.raises(ValueError, match=r"^the embedding of pair 3 is 0: it has no direction$"):
        clip_score.of(x * (np.arange(5) != 3)[:, None], x)
    with pytest.raises(ValueError, match=r"^unknown convention 'hessel' \(known: torchmetrics, paper\)$"):
        clip_score.of(x, x, convention="hessel")
