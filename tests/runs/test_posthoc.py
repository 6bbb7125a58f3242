"""Averages of a width chosen after the training: weights against numerical integrals, and against tracked averages."""

import dataclasses
import itertools
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image
from scipy.integrate import quad

from ddpm_jax import build, cli, interop
from ddpm_jax.config.run import Config, ModelConfig, OptimizerConfig, ParallelConfig, SampleConfig, TrainConfig
from ddpm_jax.runs import checkpoint, posthoc
from ddpm_jax.train import ema, loop
from tests.runs.test_checkpoint import fit, flip_a_bit, largest, truncate

SIGMAS = (0.05, 0.1)
EIGHT = range(100, 801, 100)


def profile(t, sigma):
    """The density of a power function, 0 after t."""
    gamma = ema.gamma_of(sigma)
    return lambda tau: np.where(tau <= t, (gamma + 1) / t * (np.minimum(tau, t) / t) ** gamma, 0)


def combination(found, steps, sigmas):
    """The sum of profiles with these weights [S, R]."""
    profiles = [profile(t, sigma) for t in steps for sigma in sigmas]
    return lambda tau: sum(w * p(tau) for w, p in zip(np.ravel(found), profiles, strict=True))


def integral(f, t, breaks):
    pieces = itertools.pairwise(sorted({0, *breaks, t}))
    return sum(quad(f, a, b, epsabs=1e-13, epsrel=1e-11)[0] for a, b in pieces)


# ---------------------------------------------------------------------------------------------------------- weights


PAIRS = [
    ((3, 0.1), (7, 0.05)),
    ((7, 0.1), (3, 0.05)),
    ((5, 0.2), (5, ema.WIDEST)),
    ((2, 0.01), (9, 0.25)),
]


@pytest.mark.parametrize("a, b", PAIRS)
def test_inner_products_are_the_integrals(a, b):
    p_a, p_b, t = profile(*a), profile(*b), min(a[0], b[0])
    expected = quad(lambda tau: p_a(tau) * p_b(tau), 0, t, points=[0.9 * t, 0.99 * t], epsabs=1e-14)[0]
    found = posthoc.inner(a[0], ema.gamma_of(a[1]), b[0], ema.gamma_of(b[1]))
    assert found == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("sigma", [0.04, 0.07, 0.15, 0.25])
def test_weights_are_the_best_and_the_error_is_that_of_the_profile(sigma):
    """Against integrals, on three snapshots: no other weights of sum 1 come closer."""
    steps = (20, 50, 60)
    found, error = posthoc.weights(steps, SIGMAS, 60, sigma)
    target = profile(60, sigma)

    def distance(values):
        difference = combination(np.reshape(values, (3, 2)), steps, SIGMAS)
        return integral(lambda tau: (difference(tau) - target(tau)) ** 2, 60, (20, 50))

    norm = integral(lambda tau: target(tau) ** 2, 60, (20, 50))
    assert found.shape == (3, 2) and found.sum() == pytest.approx(1, abs=1e-12)
    assert error == pytest.approx(np.sqrt(distance(found) / norm), rel=1e-6) and error > 0.01
    # The gradient along every direction that keeps the sum is 0.
    for i in range(6):
        for j in range(i):
            step = np.zeros(6)
            step[[i, j]] = 1e-3, -1e-3
            there, back = distance(found.ravel() + step), distance(found.ravel() - step)
            assert there - back == pytest.approx(0, abs=1e-9) and there + back > 2 * distance(found)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_a_width_that_is_there_is_its_own_average(sigma):
    found, error = posthoc.weights(EIGHT, SIGMAS, 800, sigma)
    expected = np.zeros((8, 2))
    expected[-1, SIGMAS.index(sigma)] = 1
    np.testing.assert_allclose(found, expected, atol=1e-9)
    assert error < 1e-7


def test_more_snapshots_and_widths_are_more_exact():
    errors = [posthoc.weights(range(800 // n, 801, 800 // n), SIGMAS, 800, 0.07).error for n in (4, 8, 16, 80)]
    assert all(b < a / 2 for a, b in itertools.pairwise(errors)) and errors[-1] < 3e-4
    assert posthoc.weights(EIGHT, (0.05, 0.1, 0.2), 800, 0.07).error < errors[1] / 5


def test_many_snapshots():
    """Almost dependent ones: weights that stay small, and reproduce the average of a wave."""
    steps, t = range(50, 10_001, 50), 10_000
    found, error = posthoc.weights(steps, SIGMAS, t, 0.07)
    assert error < 3e-5 and np.abs(found).sum() < 2 and found.sum() == pytest.approx(1, abs=1e-9)
    wave = lambda end, sigma: quad(lambda u: profile(1, sigma)(u) * np.sin(9 * u * end / t), 0, 1, epsabs=1e-13)[0]
    averages = np.array([[wave(end, sigma) for sigma in SIGMAS] for end in steps])
    assert np.sum(found * averages) == pytest.approx(wave(t, 0.07), abs=1e-6)


@pytest.mark.parametrize("steps", [(), (0, 5), (5, 5), (5, 11)])
def test_steps_that_cannot_be(steps):
    with pytest.raises(ValueError, match=r"steps of the snapshots must be different numbers in \[1, 10\], got \["):
        posthoc.weights(steps, SIGMAS, 10, 0.1)


@pytest.mark.parametrize("sigma", [0.03, 0.04, 0.06, 0.08, 0.12, 0.18])
def test_a_reconstruction_is_the_tracked_average_within_its_bound(sigma):
    """On random walks: |difference| <= error ||p|| ||theta - c||, the inequality of Cauchy and Schwarz, for any c."""
    t = 400
    path = np.random.RandomState(3).randn(t, 50).cumsum(0) + 1000
    i = np.arange(1, t + 1)

    def average(at, width):
        power = ema.gamma_of(width) + 1
        weights = np.where(i <= at, (i**power - (i - 1) ** power) / float(at) ** power, 0)
        return weights @ path

    steps = range(25, t + 1, 25)
    found, error = posthoc.weights(steps, SIGMAS, t, sigma)
    stored = np.array([[average(at, width) for width in SIGMAS] for at in steps])
    difference = np.tensordot(found, stored, 2) - average(t, sigma)
    gamma = ema.gamma_of(sigma)
    norm = posthoc.inner(t, gamma, t, gamma) ** 0.5
    bound = error * norm * np.linalg.norm(path - path.mean(0), axis=0)
    assert (np.abs(difference) <= bound).all() and error <= posthoc.TOLERANCE
    # Compared with what another width makes: a hundredth, and a tenth at the ends.
    other = np.abs(average(t, 0.05 if sigma > 0.08 else 0.1) - average(t, sigma)).max()
    assert np.abs(difference).max() < other * (0.01 if 0.05 < sigma < 0.1 else 0.1)


# -------------------------------------------------------------------------------------------------------------- runs

RUN = Config(
    model=ModelConfig(channels=4, channel_multipliers=(1,), attention_resolutions=(), num_groups=2),
    optimizer=OptimizerConfig(warmup_steps=0, ema_decay=0.9, ema_decays=(0.5,), ema_sigmas=SIGMAS),
    sample=SampleConfig(num_steps=2, num_images=4),
    train=TrainConfig(
        num_steps=32,
        batch_size=8,
        log_every=8,
        checkpoint_every=8,
        keep_checkpoints=4,
        average_every=4,
        sample_every=32,
    ),
)
TRACKED = 0.07
STEPS = list(range(4, 33, 4))


def changed(part, **values):
    return dataclasses.replace(RUN, **{part: dataclasses.replace(getattr(RUN, part), **values)})


pytestmark = pytest.mark.usefixtures("optax_promotes")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("averages") / "run"
    with jax.numpy_dtype_promotion("standard"):
        fit(workdir, RUN)
    return workdir


@pytest.fixture
def copy(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


def template():
    return build.build(RUN, (8, 8, 1)).params


def row_of(workdir, row, config=RUN):
    """Of the stack in the newest checkpoint."""
    on_host = posthoc._on_host(template(), len(loop.averages_of(config)))
    with checkpoint.checkpoints(workdir) as saved:
        return jax.tree.map(lambda leaf: leaf[row], saved.restore_item("ema_stack", on_host, pytest.fail))


def kept(workdir):
    """{step: arrays} of all intact snapshots."""
    with ocp.StandardCheckpointer() as reader:
        read = lambda path: reader.restore(path / "ema_stack", posthoc._on_host(template(), len(SIGMAS)))
        return {step: read(path) for step, path in posthoc.snapshots(workdir, pytest.fail).items()}


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def distance(a, b):
    return max(np.abs(x - y).max() for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.mark.slow
def test_a_stored_width_is_reconstructed(whole):
    """At the newest step it is the row in the checkpoint, at another one that of the snapshot."""
    assert list(kept(whole)) == STEPS
    for r, sigma in enumerate(SIGMAS):
        params, step, error = posthoc.reconstruct(whole, sigma, pytest.fail)
        assert step == 32 and error < 1e-7
        assert distance(params, row_of(whole, 1 + r)) < 1e-6
        assert distance(params, row_of(whole, 2 - r)) > 1e-3
        params, step, _ = posthoc.reconstruct(whole, sigma, pytest.fail, step=16)
        before = jax.tree.map(lambda leaf, r=r: leaf[r], kept(whole)[16])
        assert step == 16 and distance(params, before) < 1e-6


@pytest.mark.slow
def test_another_width_is_that_of_a_run_that_tracked_it(whole, tmp_path):
    tracked = changed("optimizer", ema_sigmas=(*SIGMAS, TRACKED))
    fit(tmp_path / "run", dataclasses.replace(tracked, train=dataclasses.replace(tracked.train, average_every=None)))
    assert not (tmp_path / "run" / "averages").exists()
    same = [
        checkpoint.restore_ema_and_step(workdir, template(), pytest.fail)[0] for workdir in (whole, tmp_path / "run")
    ]
    equal(*same)  # the same run
    found, _, error = posthoc.reconstruct(whole, TRACKED, pytest.fail)
    expected = row_of(tmp_path / "run", 3, tracked)
    apart = min(distance(expected, row_of(whole, row)) for row in (1, 2))
    assert error < 0.014 and distance(found, expected) < 0.02 * apart


@pytest.mark.slow
def test_a_stopped_run_writes_the_same_again(whole, tmp_path, monkeypatch):
    """Stopped at step 24 before that snapshot is written: there is no checkpoint 24, and it goes on from 16."""
    save = posthoc.save

    def stop_at_24(workdir, state, averages):
        if int(state.step) == 24:
            raise KeyboardInterrupt
        save(workdir, state, averages)

    run = tmp_path / "run"
    monkeypatch.setattr(posthoc, "save", stop_at_24)
    with pytest.raises(KeyboardInterrupt):
        fit(run, RUN)
    monkeypatch.setattr(posthoc, "save", save)
    assert list(kept(run)) == [4, 8, 12, 16, 20]
    truncate(largest(run / "averages" / "20" / "ema_stack"))
    shutil.copytree(run / "averages" / "16", run / "averages" / "24.partial")  # half-written
    untouched = (run / "averages" / "16").stat().st_mtime_ns
    assert fit(run, RUN).seen[0] == 16
    equal(kept(run), kept(whole))
    assert (run / "averages" / "16").stat().st_mtime_ns == untouched
    assert sorted(int(path.name) for path in (run / "averages").iterdir()) == STEPS


@pytest.mark.slow
def test_on_a_mesh(whole, tmp_path):
    short = changed("train", num_steps=4)
    fit(tmp_path / "run", dataclasses.replace(short, parallel=ParallelConfig({"data": 2, "fsdp": 2})))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), kept(tmp_path / "run")[4], kept(whole)[4])


@pytest.mark.slow
def test_damaged_snapshots_are_left_out(whole, copy):
    flip_a_bit(largest(copy / "averages" / "32" / "ema_stack"))
    said = []
    params, step, _ = posthoc.reconstruct(copy, 0.05, said.append)
    assert step == 28 and len(said) == 1 and f"averages in {copy}/averages are damaged (32: " in said[0]
    assert distance(params, jax.tree.map(lambda leaf: leaf[0], kept(whole)[28])) < 1e-6
    for step in STEPS[:-1]:
        (copy / "averages" / str(step) / "seal.json").unlink()
    with pytest.raises(ValueError, match=r"all averages in .* are damaged \(4: no seal.json.*; 32: .* is not what"):
        posthoc.reconstruct(copy, 0.05, pytest.fail)
    shutil.rmtree(copy / "averages")
    with pytest.raises(
        FileNotFoundError, match=r"no averages in .*: train with optimizer.ema_sigmas and train.average"
    ):
        posthoc.reconstruct(copy, 0.05, pytest.fail)


@pytest.mark.slow
@pytest.mark.parametrize(
    "sigma, step, message",
    [
        (
            0.25,
            None,
            r"8 snapshots up to step 32 give sigma_rel 0.25 .* off by 18.0%, .* nearest width within that is 0.17",
        ),
        (0.02, None, r"profile off by 24.5%.*nearest width within that is 0.0369"),
        (0.05, 30, r"7 snapshots up to step 30 .* and no other width at this step within 5%; take step 28"),
        (0.05, 33, r"step must lie in \[4, 32\], the first and the newest snapshot, got 33"),
        (0.3, None, r"sigma_rel must lie in \[0.0001, 0.288675\], got 0.3"),
    ],
)
def test_what_snapshots_do_not_represent_is_refused(whole, sigma, step, message):
    with pytest.raises(ValueError, match=message):
        posthoc.reconstruct(whole, sigma, pytest.fail, step=step)


# ------------------------------------------------------------------------------------------------------ command line


@pytest.mark.slow
def test_which_average_of_a_run(whole):
    said = []
    info = checkpoint.load_run(whole)
    choice = lambda **which: posthoc.averaged(whole, info, template(), said.append, posthoc.Average(**which))
    own = checkpoint.restore_ema_and_step(whole, template(), said.append)[0]
    for which, expected in (
        ({}, own),
        ({"decay": 0.9}, own),
        ({"decay": 0.5}, row_of(whole, 0)),
        ({"sigma": 0.05}, row_of(whole, 1)),
        ({"sigma": 0.1}, row_of(whole, 2)),
    ):
        params, step = choice(**which)
        assert step == 32
        equal(params, expected)
    assert said == []
    params, step = choice(sigma=TRACKED)
    assert step == 32 and said == ["average of sigma_rel 0.07 at step 32 from snapshots, its profile off by 1.34%"]
    equal(params, posthoc.reconstruct(whole, TRACKED, pytest.fail).params)
    with pytest.raises(ValueError, match=r"unknown ema_decay of the run '0.99'.*\(known: 0.9, 0.5\)"):
        choice(decay=0.99)


@pytest.mark.slow
def test_sampling_with_another_average(copy, tmp_path):
    def drawn(name, *options):
        out = tmp_path / f"{name}.npz"
        cli.main(["sample", str(copy), "--num-steps", "2", "-n", "4", "--out", str(out), *options])
        with np.load(out) as file:
            return file["images"]

    own = drawn("own")
    np.testing.assert_array_equal(drawn("same", "--ema-decay", "0.9"), own)
    others = [drawn("a", "--ema-decay", "0.5"), drawn("b", "--ema-sigma", "0.07"), drawn("c", "--ema-sigma", "0.1")]
    assert all((a != b).any() for a, b in itertools.combinations([own, *others], 2))
    cli.main(["sample", str(copy), "--num-steps", "2", "-n", "4", "--ema-sigma", "0.07"])
    assert Image.open(next(copy.glob("step*_ddim_2_sigma0.07_n4_seed0.png")))


@pytest.mark.slow
def test_converting_another_average(whole, tmp_path):
    cli.main(["convert", str(whole), str(tmp_path / "folder"), "--ema-sigma", "0.07"])
    equal(interop.load(str(tmp_path / "folder")).params, posthoc.reconstruct(whole, TRACKED, pytest.fail).params)


@pytest.mark.slow
@pytest.mark.parametrize(
    "command, message",
    [
        ("sample RUN --ema-decay 0.5 --ema-sigma 0.1", "give either an ema_decay or an ema_sigma, got 0.5 and 0.1"),
        ("sample RUN --ema-decay 0.99", "unknown ema_decay of the run '0.99'"),
        ("sample RUN --ema-sigma 0.25", "the nearest width within that is 0.1"),
        ("sample RUN --ema-sigma nan", "sigma_rel must lie in [0.0001, 0.288675], got nan"),
        ("sample nowhere --ema-sigma 0.1", "choose among the averages of a run, got nowhere, which is no run"),
        ("convert nowhere there --ema-decay 0.1", "choose among the averages of a run, got nowhere, which is no run"),
        (
            "train --optimizer.ema-sigmas 0.3 0.1",
            "optimizer.ema_sigmas must be different numbers in [0.0001, 0.288675]",
        ),
    ],
)
def test_a_users_error_is_one_line(whole, command, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        cli.main(command.replace("RUN", str(whole)).split())
    error = capsys.readouterr().err.strip()
    assert stop.value.code == 2 and error.startswith("ddpm-jax: ") and "\n" not in error and message in error
    assert not list(tmp_path.iterdir())
