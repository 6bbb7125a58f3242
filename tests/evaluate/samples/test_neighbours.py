"""Precision, recall, density, coverage and 1-nearest-neighbour accuracy: ties exactly, then three programs' numbers."""

import numpy as np
import pytest

from ddpm_jax.evaluate.samples import density_coverage, neighbours, precision_recall, two_sample

RNG = np.random.default_rng(0)
EDGES = ["inside", "outside"]


def squares(x, y):
    return np.square(np.asarray(x, np.float64)[:, None] - y).sum(-1)


def lattice(n, seed=1):
    """Points many of which are twins, and most as far from each other as others are; a norm that rounds."""
    return np.random.default_rng(seed).integers(0, 4, (n, 3)) * 0.1 + 1e4


@pytest.mark.parametrize("k", [1, 4])
def test_radii_are_those_of_all_pairs(k, monkeypatch):
    for points in (RNG.standard_normal((130, 5)), lattice(130)):
        expected = np.sort(squares(points, points) + np.diag([np.inf] * 130), 1)[:, k - 1]
        np.testing.assert_array_equal(neighbours.radii(points, k), expected)
    monkeypatch.setattr(neighbours, "PAIRS", 7)
    np.testing.assert_array_equal(neighbours.radii(points, k), expected)


@pytest.mark.parametrize("below", [False, True])
def test_what_lies_inside_is_counted_as_by_all_pairs(below):
    for x, y in ((RNG.standard_normal((600, 3)), RNG.standard_normal((90, 3))), (lattice(600), lattice(90, 2))):
        radii = neighbours.radii(y, 2)
        held = squares(x, y) < radii if below else squares(x, y) <= radii
        of_points, of_balls = neighbours.inside(x, y, radii, below=below)
        np.testing.assert_array_equal(of_points, held.sum(1))
        np.testing.assert_array_equal(of_balls, held.sum(0))


@pytest.mark.parametrize("k", [1, 3, 5])
def test_equal_sets_are_all_precise_and_recalled_under_ties(k):
    for x in (lattice(200), RNG.standard_normal((700, 64)).astype(np.float32) * 100):
        found = precision_recall.of(x, RNG.permutation(x), k=k)
        assert found.precision == found.recall == (1, 0)
        assert found.f_score == 1
        assert density_coverage.of(x, x, k=k, edge="inside").coverage == (1, 0)


def test_twins_are_in_no_ball_whose_edge_is_outside():
    """What prdc says of a data set in which every image is there 6 times."""
    x = np.repeat(RNG.standard_normal((30, 8)), 6, axis=0)
    found = precision_recall.of(x, x, k=5, edge="outside")
    assert found.precision.value == found.recall.value == found.f_score == 0
    assert density_coverage.of(x, x) == ((0, 0), (0, 0))


def test_sets_far_from_each_other_have_nothing_in_common():
    x, y = RNG.standard_normal((50, 4)), RNG.standard_normal((60, 4)) + 100
    assert precision_recall.of(x, y) == ((0, 0), (0, 0))
    assert two_sample.accuracy(x, y[:50]) == (1, 0)


def test_samples_are_the_first_and_references_the_second():
    """One real image drawn again and again is precise, and recalls little."""
    real = RNG.standard_normal((200, 2))
    found = precision_recall.of(real[:1] + 1e-3 * RNG.standard_normal((200, 2)), real)
    assert found.precision.value == 1
    assert found.recall.value < 0.05


def test_density_of_equal_laws_is_1_and_coverage_as_its_formula():
    """E density = 1, E coverage = 1 - (N - 1)...(N - k) / ((2 N - 1)...(2 N - k)); Naeem 2020, lemma 2."""
    n, k, density, coverage = 60, 3, [], []
    for _ in range(300):
        x, y = RNG.standard_normal((2, n, 4))
        found = density_coverage.of(x, y, k=k)
        density.append(found.density.value)
        coverage.append(found.coverage.value)
    steps = np.arange(1, k + 1)
    expected = 1 - np.prod((n - steps) / (2 * n - steps))
    error = lambda values: np.std(values, ddof=1) / np.sqrt(len(values))
    assert abs(np.mean(coverage) - expected) < 5 * error(coverage)
    assert abs(np.mean(density) - 1) < 5 * error(density)


def test_two_sample_accuracy_of_one_law_is_a_half_and_of_copies_0():
    values = [two_sample.accuracy(*RNG.standard_normal((2, 100, 5))).value for _ in range(200)]
    # Of 200 points each is classified by one of 199 others, 99 of which are of its kind.
    assert abs(np.mean(values) - 99 / 199) < 5 * np.std(values) / np.sqrt(200)
    x = RNG.standard_normal((100, 5))
    assert two_sample.accuracy(x, RNG.permutation(x)).value == 0
    found = two_sample.accuracy(x, x + 0.3)
    assert found.standard_error == pytest.approx(np.sqrt(found.value * (1 - found.value) / 200))


def test_ties_of_the_nearest_count_as_shares():
    """Points 0, 0' | 1, 2: 0 and 0' are each other's; 1 is as near to both of them as to 2; 2 is nearest to 1."""
    found = two_sample.accuracy(np.array([[0.0], [0.0]]), np.array([[1.0], [2.0]]))
    assert found.value == pytest.approx((1 + 1 + 1 / 3 + 1) / 4)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_torch_fidelitys_and_prdcs_numbers(shared_golden, k):
    """Both say float32 numbers."""
    with np.load(shared_golden / "metrics" / "feature_metrics.npz") as file:
        fake, real = file["f1"], file["f2"]
        theirs, prdc = file[f"prc.k{k}"], file[f"prdc.k{k}"]
    inside, outside = (precision_recall.of(fake, real, k=k, edge=edge) for edge in EDGES)
    found = [inside.precision.value, inside.recall.value, inside.f_score]
    np.testing.assert_allclose(found, theirs, rtol=1e-6)
    p = found[0]
    assert inside.precision.standard_error == pytest.approx(np.sqrt(p * (1 - p) / len(fake)))
    both = density_coverage.of(fake, real, k=k)
    found = [outside.precision.value, outside.recall.value, both.density.value, both.coverage.value]
    np.testing.assert_allclose(found, prdc, rtol=1e-6)


def test_torch_fidelitys_defaults(shared_golden):
    draws = np.random.RandomState(9001)
    fake = (draws.standard_normal((1100, 32)) + 0.1).astype(np.float32)
    found = precision_recall.of(fake, draws.standard_normal((1300, 32)).astype(np.float32))
    with np.load(shared_golden / "metrics" / "feature_metrics.npz") as file:
        expected = file["big.prc_default"]
    np.testing.assert_allclose([found.precision.value, found.recall.value, found.f_score], expected, rtol=1e-6)


def test_adms_numbers(shared_golden):
    """Its squared distances are float16, 3e-3 off: at k = 1 that moves one sample of 130, at 3 and 5 none."""
    with np.load(shared_golden / "metrics" / "openai_evaluator.npz") as file:
        samples, reference, theirs = file["sample"], file["ref"], (file["precision_k135"], file["recall_k135"])
        np.testing.assert_allclose(neighbours.radii(reference, 3), file["radii_ref"][:, 0], rtol=3e-3)
        found = [precision_recall.of(samples, reference, k=k) for k in (1, 3, 5)]
    assert round(130 * abs(found[0].precision.value - theirs[0][0])) == 1
    np.testing.assert_allclose([f.precision.value for f in found[1:]], theirs[0][1:], rtol=1e-6)
    np.testing.assert_allclose([f.recall.value for f in found], theirs[1], rtol=1e-6)


def test_bad_input_in_one_line():
    x = RNG.standard_normal((5, 2))
    with pytest.raises(ValueError, match=r"^reference: at least 6 images are needed, got 5$"):
        precision_recall.of(np.tile(x, (2, 1)), x, k=5)
    with pytest.raises(ValueError, match=r"^unknown edge 'strict' \(known: inside, outside\)$"):
        precision_recall.of(x, x, edge="strict")
    with pytest.raises(ValueError, match=r"^unknown edge 'outsid'; did you mean 'outside'\?"):
        density_coverage.of(x, x, k=2, edge="outsid")
    with pytest.raises(ValueError, match=r"^k must be from 1 to 4, the other images there are, got 0$"):
        precision_recall.of(x, x, k=0)
    with pytest.raises(ValueError, match=r"^two-sample accuracy needs as many samples as references, got 5 and 4$"):
        two_sample.accuracy(x, x[:4])
    with pytest.raises(ValueError, match=r"^samples: the features of image 0 are not finite$"):
        density_coverage.of(x * np.nan, x, k=2)
