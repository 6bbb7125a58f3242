"""Benchmarks: statistics from closed forms, times by a clock that counts, PyTorch's numbers, files and page."""

import itertools
import json
import subprocess
import sys
from html.parser import HTMLParser

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import __main__ as more
from benchmarks import cold, compilations, growth, training
from ddpm_jax import cli, interop, opening, samplers, schedules
from ddpm_jax.evaluate.samples import frechet
from ddpm_jax.models import UNet
from ddpm_jax.samplers.catalogue import make_table
from ddpm_jax.tools.bench import (
    blocks,
    command,
    components,
    files,
    flops,
    interleave,
    network,
    networks,
    page,
    sampling,
    settings,
    solvers,
    theirs,
    torch_forms,
    torch_unet,
)
from ddpm_jax.tools.bench.blocks import PRODUCT, Comparison, Curves, Facts, Missing
from ddpm_jax.tools.bench.networks import Network

TINY = Network(
    UNet(channels=8, channel_multipliers=(1, 2), num_res_blocks=1, attention_resolutions=(4,), out_channels=1,
         num_groups=4, dropout=0.0),
    (8, 8, 1),
)  # fmt: skip


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(networks.NETWORKS, "digits", TINY)
    monkeypatch.setitem(network.SIZE, "cpu", 64)
    monkeypatch.setattr(training, "EXAMPLES", 50)
    return settings.Settings(network="digits", batch=2, num_steps=3, rounds=2, only=("ddpm_jax", "eager", PRODUCT))


# ------------------------------------------------------------------------------------------------------- statistics


def test_the_interval_holds_the_median_as_often_as_it_says():
    """P(x_(k) < median < x_(n + 1 - k)) enumerated: a value lies on either side of the median with probability 1/2."""
    for n, k in ((1, 1), (5, 1), (6, 1), (9, 2), (12, 3)):
        below = [sum(sides) for sides in itertools.product((0, 1), repeat=n)]
        held = sum(k <= count <= n - k for count in below) / 2**n
        assert interleave.coverage(n, k) == pytest.approx(held)


def test_spread_takes_the_narrowest_interval_that_suffices():
    found = interleave.spread([9.0, 1.0, 8.0, 2.0, 7.0, 3.0, 6.0, 4.0, 5.0])
    assert found == interleave.Spread(9, 5.0, 2.0, 8.0, 1 - 2 * 10 / 512, 1.0, 9.0)  # (1 + 9) / 2^9 in each tail
    assert interleave.coverage(9, 3) < interleave.CONFIDENCE
    for n in range(1, 40):
        found = interleave.spread(range(n))
        assert found.median == (n - 1) / 2 and found.low + found.high == n - 1 and found.low <= found.high
        assert found.coverage >= interleave.CONFIDENCE or (n < 6 and (found.low, found.high) == (0, n - 1))
    assert interleave.spread([3.0]) == interleave.Spread(1, 3.0, 3.0, 3.0, 0.0, 3.0, 3.0)
    with pytest.raises(ValueError, match="at least one value, got none"):
        interleave.spread([])


class Hours:
    """A clock that jobs move."""

    def __init__(self):
        self.now, self.ran = 0.0, []

    def job(self, name, seconds):
        def run():
            self.ran.append(name)
            self.now += seconds(self.ran.count(name))

        return run


def test_every_job_once_a_round_and_each_begins_a_round():
    hours = Hours()
    jobs = {name: hours.job(name, lambda k, s=s: s * k) for name, s in (("a", 1.0), ("b", 10.0), ("c", 100.0))}
    found = interleave.interleaved(jobs, 4, pause=0, clock=lambda: hours.now)
    assert "".join(hours.ran) == "abc" + "bca" + "cab" + "abc"
    assert found == {"a": [1, 2, 3, 4], "b": [10, 20, 30, 40], "c": [100, 200, 300, 400]}
    assert interleave.ratios(found["b"], found["a"]) == [10, 10, 10, 10]  # whatever the rounds cost


def test_a_short_job_is_repeated():
    hours = Hours()
    jobs = {"a": hours.job("a", lambda k: 0.08), "b": hours.job("b", lambda k: 0.5)}
    found = interleave.interleaved(jobs, 2, pause=0, clock=lambda: hours.now)
    assert "".join(hours.ran) == "aaaa" + "b" + "b" + "aaaa"  # 0.24 s would be too few
    assert found == {"a": pytest.approx([0.08, 0.08]), "b": pytest.approx([0.5, 0.5])}


def test_no_round_begins_too_late_but_the_first_three():
    hours = Hours()
    jobs = {"a": hours.job("a", lambda k: 1.0)}
    found = interleave.interleaved(jobs, 100, seconds=5.5, pause=0, clock=lambda: hours.now)
    assert len(found["a"]) == 6
    found = interleave.interleaved(jobs, 100, seconds=0.5, pause=0, clock=lambda: hours.now)
    assert len(found["a"]) == interleave.LEAST_ROUNDS
    assert interleave.interleaved({}, 3) == {}
    with pytest.raises(ValueError, match="rounds must be at least 1, got 0"):
        interleave.interleaved(jobs, 0)


def test_a_job_that_cannot_run_says_why_and_others_run():
    def broken():
        raise RuntimeError("no\n  compiler")

    running, missing = interleave.warmed({"a": lambda: None, "b": broken})
    assert list(running) == ["a"] and missing == {"b": "RuntimeError: no compiler"}

    def wrong():
        raise TypeError("a mistake of ours")

    with pytest.raises(TypeError):
        interleave.warmed({"c": wrong})


def test_ratios_are_of_rounds_and_not_of_medians():
    """A machine that becomes 10 times slower from round to round: the ratio is 2 in each of them."""
    seconds = {"ours": [1.0, 10.0, 100.0], "theirs": [2.0, 20.0, 200.0], PRODUCT: [0.5, 5.0, 50.0]}
    found = Comparison("t", "ours", seconds, 8, "image", {"ours": 6.0, PRODUCT: 4.0})
    assert found.ratio("theirs").median == found.ratio("theirs").low == 2 and found.time("theirs").median == 20
    # 6 FLOP in 1 s beside 4 in 0.5 s.
    share = found.share_of_product("ours")
    assert share is not None and share.median == pytest.approx(6 / 8)
    assert found.share_of_product("theirs") is None and found.share_of_product(PRODUCT) is None


# ------------------------------------------------------------------------------------------------------------ flops


def test_flops_are_counted():
    a, b = jnp.zeros((3, 5)), jnp.zeros((5, 7))
    assert flops.product_flops(jnp.matmul, a, b) == 2 * 3 * 5 * 7
    x, kernel = jnp.zeros((2, 8, 8, 3)), jnp.zeros((3, 3, 3, 4))
    convolve = lambda x, kernel: jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    assert flops.product_flops(convolve, x, kernel) == 2 * 2 * 8 * 8 * 4 * 3 * 9
    scanned = lambda m: jax.lax.scan(lambda c, _: (c @ m, None), m, length=6)[0]
    assert flops.product_flops(jax.jit(scanned), jnp.zeros((4, 4))) == 6 * 2 * 4**3
    # DDPM's network: about 6.2 G multiplications an image.
    model = networks.NETWORKS["cifar10"].model
    x, t = jnp.zeros((1, 32, 32, 3)), jnp.zeros(1)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x, t)
    counted = flops.product_flops(lambda v, x, t: model.apply(v, x, t), shapes, x, t)
    assert counted == pytest.approx(12.4e9, rel=0.01)


# ------------------------------------------------------------------------------------------------------- components


def test_the_projection_keeps_what_varies():
    rng = np.random.default_rng(0)
    real = rng.integers(100, 150, (40, 2, 2, 1), dtype=np.uint8)
    real[:, 1, 0, 0] = rng.integers(0, 256, 40)
    axes = components.projection(real, components=1)
    assert axes.shape == (4, 1) and abs(axes[2, 0]) > 0.95
    every = components.projection(real)
    assert every.shape == (4, 4)  # and with all axes nothing is lost
    a, b = (components.gaussian(part, every) for part in (real[:20], real[20:]))
    assert frechet.distance(a, b) == pytest.approx(
        frechet.estimate(components.flat(real[:20]), components.flat(real[20:])).value
    )


# ---------------------------------------------------------------------------------------------------------- PyTorch


@pytest.fixture
def there():
    pytest.importorskip("torch")
    found = theirs.load("float32")
    assert not isinstance(found, str)
    found.torch.set_num_threads(1)
    return found


def twin(there, params):
    """TINY written for this comparison, whatever is installed."""
    from ddpm_jax.interop import diffusers
    from ddpm_jax.interop.diffusers import to_diffusers

    config = to_diffusers.unet_to_config(TINY.model, TINY.image_shape)
    network = torch_unet.unet(there.torch, config)
    return torch_forms.weights_into(there.torch, network, diffusers.params_to_unet2d(params, config)).eval()


def nhwc(tensor):
    return tensor.detach().numpy().transpose(0, 2, 3, 1)


def test_the_twin_computes_what_our_network_does(there, highest):
    params = networks.parameters(TINY)
    x, t = np.random.default_rng(0).standard_normal((2, 8, 8, 1), np.float32), np.array([3.0, 770.0], np.float32)
    expected = jax.jit(TINY.model.apply)({"params": params}, x, t)
    with there.torch.no_grad():
        found = nhwc(twin(there, params)(there.images(x), there.numbers(t)))
        np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())
        pytest.importorskip("diffusers")
        network, origin = theirs.network(there, TINY, params)
        assert origin.startswith("UNet2DModel of diffusers")
        np.testing.assert_allclose(nhwc(network(there.images(x), there.numbers(t))), found, atol=1e-5)


def test_a_network_that_only_diffusers_has(there):
    with pytest.raises(ValueError, match=r"only DDPM's network can be built in PyTorch, got \{'freq_shift': 0\}"):
        torch_unet.unet(there.torch, torch_unet.PLAIN | {"down_block_types": [], "up_block_types": [], "freq_shift": 0})


@pytest.mark.parametrize("name", ["ddim", "heun", "unipc_3"])
def test_their_loop_takes_the_steps_of_a_table(name, there, highest):
    table = make_table(name, schedules.linear(1000), 4)
    x_T = np.random.default_rng(0).standard_normal((2, 8, 8, 1), np.float32)
    denoise = samplers.denoiser(lambda x, t: jnp.tanh(x) * (1 + t[:, None, None, None] / 1000))
    expected = samplers.sample(denoise, table, jax.random.key(0), x_T.shape, x_T=jnp.asarray(x_T))

    class Fake(there.torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.unused = there.torch.nn.Parameter(there.torch.zeros(1))

        def forward(self, x, t):
            return there.torch.tanh(x) * (1 + t[:, None, None, None] / 1000)

    start = there.images(np.float32(table.init) * x_T)
    found = nhwc(torch_forms.sample(there.torch, Fake(), theirs.rows(table), start))
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-4 * float(jnp.abs(expected).max()))


def test_their_loop_refuses_samplers_that_draw_noise():
    with pytest.raises(ValueError, match="samplers that draw no noise"):
        theirs.rows(make_table("ddpm", schedules.linear(1000), 4))


def test_their_training_step_is_adams(there):
    """Adam's first step is the learning rate against the sign of the gradient, clipped or not."""
    torch, params = there.torch, networks.parameters(TINY)
    form = torch_forms.Form(twin(there, params), torch.channels_last)
    before = [p.detach().clone() for p in form.network.parameters()]
    recipe = training.Recipe(torch.linspace(0.99, 0.01, 10), 1e-3, 1.0, 0.9, torch.float32)
    job = training.in_pytorch(torch, form, torch.zeros(2, 1, 8, 8, dtype=torch.uint8), recipe)
    job()
    moved = torch.cat([(p - q).abs().flatten() for p, q in zip(form.network.parameters(), before, strict=True)])
    assert moved.max() < 1.001e-3 and moved.median() > 0.99e-3


def test_without_torch(monkeypatch, tiny):
    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(theirs.importlib, "import_module", absent)
    assert theirs.load("float32") == "torch is not installed: pip install 'ddpm_jax[parity]'"
    table = sampling.ddim(3).table
    jobs, missing, _ = sampling.their_jobs(tiny, None, table, None, None)
    assert jobs == {} and set(missing) == {*sampling.FORMS, sampling.PIPELINE}
    assert set(missing.values()) == {"torch is not installed: pip install 'ddpm_jax[parity]'"}


# ------------------------------------------------------------------------------------------------------------ parts


def test_our_ways_to_sample_are_one(tiny, highest):
    """The scan, the loop in Python and DDIM by hand: the same images from the same x_T."""
    params, (table, make_denoise) = networks.parameters(TINY), sampling.ddim(4)
    x_T = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
    jobs = sampling.our_jobs(TINY, make_denoise, table, params, x_T)
    scan, *others = [
        jobs[name]() for name in (sampling.REFERENCE, "ddpm_jax, loop in Python", "ddpm_jax, DDIM by hand")
    ]
    for other in others:
        np.testing.assert_allclose(other, scan, atol=2e-5 * float(jnp.abs(scan).max()))


@pytest.mark.slow
def test_sampling_and_network_beside_pytorch(tiny, there, highest):
    """Whole parts: every contestant is measured or said not to be, and PyTorch's images are ours."""
    found, facts = sampling.measure(tiny, lambda text: None)
    asked = {"ddpm_jax", "ddpm_jax, loop in Python", "ddpm_jax, DDIM by hand", "ddpm_jax, network calls alone"}
    assert set(found.seconds) == asked | {"PyTorch eager"}
    assert set(found.missing) == {*sampling.FORMS, sampling.PIPELINE} - {"PyTorch eager"}
    assert all(len(times) == tiny.rounds for times in found.seconds.values())
    differences = [float(value) for what, value in facts.rows if what.startswith("largest difference")]
    assert len(differences) == 1 and differences[0] < 1e-4
    forward, backward, facts = network.measure(tiny, lambda text: None)
    for comparison in (forward, backward):
        assert set(comparison.seconds) == {"ddpm_jax", PRODUCT, "PyTorch eager"}
    assert backward.flops["ddpm_jax"] == 3 * forward.flops["ddpm_jax"]
    differences = [float(value) for what, value in facts.rows if what.startswith("largest difference")]
    assert len(differences) == 1 and differences[0] < 1e-4


@pytest.mark.campaign
def test_a_part_of_training(tiny, there):
    """optax mixes dtypes, which tests otherwise forbid."""
    with jax.numpy_dtype_promotion("standard"):
        step, _, pipeline = training.measure(tiny, lambda text: None)
    assert set(step.seconds) == {"ddpm_jax", "PyTorch eager"} and set(pipeline.seconds) == {
        "read",
        "read ahead in threads",
    }


def test_one_compilation_for_twenty_samplers(tiny):
    facts, missing = compilations.measure(
        settings.Settings(network="digits", batch=1, only=("samplers.Runner",)), lambda text: None
    )
    assert len(compilations.PAIRS) == 20
    (row,) = facts.rows
    assert row[:2] == [compilations.RUNNER, 1]
    assert set(missing.reasons) == {compilations.JITTED, compilations.NETWORK}


SMALL = """
from ddpm_jax.config.run import *

config = Config(
    model=ModelConfig(channels=8, channel_multipliers=(1,), attention_resolutions=(), num_groups=4),
    optimizer=OptimizerConfig(learning_rate=5e-3, warmup_steps=0),
    train=TrainConfig(num_steps=200, batch_size=16, checkpoint_every=200, sample_every=200),
    sample=SampleConfig(num_steps=2, num_images=4),
)
"""


@pytest.mark.campaign
def test_solvers_on_a_trained_run(tmp_path, monkeypatch):
    """More calls, less error; the teacher beside itself has none; what draws noise has a distance only."""
    (tmp_path / "small.py").write_text(SMALL)
    with jax.numpy_dtype_promotion("standard"):
        cli.main(["train", str(tmp_path / "small.py"), "--workdir", str(tmp_path / "run")])
    chosen = {name: solvers.CATALOGUE[name] for name in ("ddpm", "ddim", "dpm_solver_pp_2m", "ddpm_learned")}
    for name, value in {"CATALOGUE": chosen, "STEPS": (4, 16, 64), "MOST_CALLS": 64, "TEACHER_STEPS": (32, 64),
                        "MANY": 8, "PAIRS": 8, "SAMPLES": 16, "CHUNK": 8}.items():  # fmt: skip
        monkeypatch.setattr(solvers, name, value)
    found = solvers.measure(settings.Settings(workdir=str(tmp_path / "run")), lambda text: None)
    _, errors, scores, table, missing = found
    assert errors.lines.keys() == {"ddim", "dpm_solver_pp_2m"} and scores.lines.keys() == {*errors.lines, "ddpm"}
    calls, values = zip(*errors.lines["ddim"], strict=True)
    assert calls == (4, 16, 64) and values[0] > 2 * values[1] > 4 * values[2] > 0
    assert errors.lines["dpm_solver_pp_2m"][-1] == [64, pytest.approx(0, abs=1e-5)]
    assert [row[3] for row in table.rows if row[0] == "ddpm"] == [""] * 3
    assert all(np.isfinite(score) for line in scores.lines.values() for _, score in line)
    assert set(missing.reasons) == {f"ddpm_learned, {n} steps" for n in (4, 16, 64)}

    # The same of the run as a folder of diffusers, which is told its images.
    interop.save_diffusers(tmp_path / "folder", opening.open(tmp_path / "run", print))
    monkeypatch.setattr(solvers, "CATALOGUE", {"ddim": chosen["ddim"]})
    told = settings.Settings(workdir=str(tmp_path / "folder"), data={"name": "digits"})
    (_, again, distances, _) = solvers.measure(told, lambda text: None)
    np.testing.assert_allclose(again.lines["ddim"], errors.lines["ddim"], rtol=1e-2)
    np.testing.assert_allclose(distances.lines["ddim"], scores.lines["ddim"], rtol=5e-2)
    with pytest.raises(ValueError, match="does not say which images"):
        solvers.measure(settings.Settings(workdir=str(tmp_path / "folder")), lambda text: None)


def test_compilations_are_counted():
    x = jnp.zeros(3)
    with compilations.counting() as found:
        for n in (2, 3, 3):
            jax.jit(lambda x, n=n: x * n).lower(x).compile()
    jax.jit(lambda x: x + 17).lower(x).compile()
    assert len(found) == 3


def test_memory_does_not_grow_with_steps(tiny, monkeypatch):
    monkeypatch.setattr(growth, "STEPS", (2, 20))
    comparison, times, memory, _ = growth.steps(settings.Settings("digits", 2, rounds=2), networks.parameters(TINY))
    (small, large) = (y for _, y in memory.lines["sampler's steps"])
    assert large < small + 18 * 100 * 4 / 2**20 + 0.01  # the table itself: fewer than 100 numbers a row
    assert comparison.flops == {} and [x for x, _ in times.lines["sampler's steps"]] == [2, 20]


def test_a_process_that_fails_says_why(tmp_path):
    with pytest.raises(ChildProcessError, match=r"jax: .*request\.json"):
        cold.first_image("jax", tmp_path)


# -------------------------------------------------------------------------------------------------- files and pages


class Texts(HTMLParser):
    """The texts of a page by tag."""

    def __init__(self, text):
        super().__init__()
        self.open, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)

    def handle_data(self, data):
        if data.strip():
            self.texts.append((self.open[-1], data.strip()))


BLOCKS = [
    Comparison(
        "forward", "ours", {"ours": [0.001] * 9, "theirs": [0.002] * 9}, 16, "image", {"ours": 1e9}, {"x": "no"}
    ),
    Facts("facts", ["what", "value"], [["a", 1]]),
    Curves("error", "calls", "rms", {"ddim": [[5, 0.1], [10, 0.01]]}, "xy", "a note"),
    Missing("Not measured", {"gpu": "there is none"}),
]


def test_blocks_come_back_from_json():
    written = json.loads(json.dumps([blocks.to_dict(block) for block in BLOCKS]))
    assert [blocks.from_dict(values) for values in written] == BLOCKS
    assert written[0]["computed"]["theirs"]["seconds / ours"]["median"] == 2
    with pytest.raises(ValueError, match="kind of block"):
        blocks.from_dict({"kind": "picture"})
    with pytest.raises(ValueError, match="has the fields"):
        blocks.from_dict({"kind": "facts", "title": "t"})


def test_a_page_shows_numbers_that_follow_from_the_times():
    header, rows = page.comparison(BLOCKS[0])
    assert header == ["", "rounds", "ms", "images/s", "ours is x as fast", "GFLOP/s"]
    assert rows[0] == ["ours", "9", "1.00 [1.00, 1.00] 96 %", "16000", "1.00 [1.00, 1.00] 96 %", "1000"]
    assert rows[1] == ["theirs", "9", "2.00 [2.00, 2.00] 96 %", "8000", "2.00 [2.00, 2.00] 96 %", ""]


@pytest.fixture
def quick(monkeypatch):
    """A part that takes no time."""
    asked = []

    def measured(part, settings, say):
        asked.append((part, settings))
        return BLOCKS

    monkeypatch.setattr(command, "measured", measured)
    return asked


def test_a_measurement_is_a_file_and_all_are_a_page(quick, tmp_path):
    out, said = tmp_path / "out", []
    command.run(["sampling", "loop", "--batch", "1", "16", "--model", "digits", "--out", str(out)], said.append)
    names = {"sampling_digits_b1_float32.json", "sampling_digits_b16_float32.json", "loop_digits_b1_float32.json"}
    assert {path.name for path in out.iterdir()} == {*names, files.PAGE}
    content = json.loads((out / "loop_digits_b1_float32.json").read_text())
    assert content["format"] == files.FORMAT and content["command"].startswith("ddpm-jax bench sampling loop --batch 1")
    assert {"date", "processor", "cores", "memory_gib", "versions", "devices"} <= content["machine"].keys()
    assert content["machine"]["versions"]["jax"] == jax.__version__
    texts = Texts((out / files.PAGE).read_text()).texts
    assert [text for tag, text in texts if tag == "h2"] == [
        "loop: digits_b1_float32", "sampling: digits_b16_float32", "sampling: digits_b1_float32",
    ]  # fmt: skip
    assert ("td", "2.00 [2.00, 2.00] 96 %") in texts
    assert ("p", "Not measured: gpu: there is none") in texts and ("p", "Not measured: x: no") in texts
    # Again: what is there stays.
    before = {path: path.read_bytes() for path in out.glob("*.json")}
    quick.clear()
    command.run(["loop", "--model", "digits", "--batch", "1", "--out", str(out)], said.append)
    assert quick == [] and {path: path.read_bytes() for path in before} == before
    assert any("loop_digits_b1_float32.json exists: not measured again" in text for text in said)


def test_time_that_is_over_is_said(quick, tmp_path):
    said = []
    with pytest.raises(FileNotFoundError, match="no measurements in"):
        command.run(["loop", "network", "--batch", "1", "--minutes", "-1", "--out", str(tmp_path)], said.append)
    assert [text.split(":")[0] for text in said] == ["not measured"] * 2 and quick == []


def test_the_users_own_files_stay(quick, tmp_path):
    (tmp_path / files.PAGE).write_text("mine")
    (tmp_path / "mine.json").write_text('{"format": "mine"}')
    with pytest.raises(FileExistsError, match=r"bench\.html exists and is no page of this command"):
        command.run(["loop", "--model", "digits", "--out", str(tmp_path)], print)
    assert (tmp_path / files.PAGE).read_text() == "mine"
    assert quick == [] and {path.name for path in tmp_path.iterdir()} == {files.PAGE, "mine.json"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", r"a\.json is not JSON: "),
        (json.dumps({"format": files.FORMAT, "part": "loop"}), r"a\.json .* has no label, command, machine, blocks"),
        (json.dumps(dict.fromkeys(files.FIELDS, "") | {"format": files.FORMAT, "blocks": [{"kind": "picture"}]}),
         r"a\.json: unknown kind of block 'picture'"),
    ],
)  # fmt: skip
def test_a_damaged_measurement_is_named(content, said, tmp_path):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match=said):
        command.run(["page", "--out", str(tmp_path)], print)
    assert not (tmp_path / files.PAGE).exists()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["sampler"], "bench has no part 'sampler'; it has network, sampling"),
        (["solvers"], "bench solvers needs --workdir SOURCE"),
        (["loop", "--data.name", "digits"], "bench --data.name is for the part solvers"),
        (["--batch", "0"], "must be a whole number of at least 1, got '0'"),
        (["--rounds", "x"], "must be a whole number of at least 1, got 'x'"),
        (["--model", "x"], "invalid choice: 'x'"),
        (["--nothing"], "unrecognized arguments: --nothing"),
    ],
)
def test_errors_are_one_line(argv, said, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["bench", *argv, "--out", str(tmp_path / "out")])
    line = capsys.readouterr().err
    assert stopped.value.code == 2 and said in line and line.count("\n") == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize("parts", [command.PARTS, more.PARTS], ids=["bench", "benchmarks"])
def test_all_parts_by_default(parts, quick, tmp_path):
    command.run(["--out", str(tmp_path), "--batch", "2"], lambda text: None, parts)
    assert [part for part, _ in quick] == [part for name, part in parts.items() if name != "solvers"]
    for part in parts.values():  # and each has its module
        assert callable(command.importlib.import_module(part.module).measure)


WITHOUT = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {absent}:
            raise ImportError("No module named " + repr(name.split(".")[0]))

sys.meta_path.insert(0, Absent())
sys.argv = ["bench", "network", "loop", "--model", "digits", "--batch", "1", "--rounds", "1", "--out", {out!r}]
sys.argv += ["--only", "ddpm_jax", "step"]
from ddpm_jax.tools.bench.command import main
main()
assert not set(sys.modules) & set({absent}), set(sys.modules) & set({absent})
"""
# What may be absent where JAX, Flax, optax, Orbax, NumPy and SciPy, which JAX needs, are installed.
ABSENT = ["tyro", "tqdm", "matplotlib", "tensorflow", "tensorflow_datasets", "array_record", "sklearn", "PIL",
          "tenacity", "safetensors", "diffusers", "torch"]  # fmt: skip


@pytest.mark.slow
def test_it_runs_where_only_jax_is(tmp_path):
    code = WITHOUT.format(absent=ABSENT, out=str(tmp_path / "out"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = {path.name: json.loads(path.read_text()) for path in (tmp_path / "out").glob("*.json")}
    assert set(found) == {"network_digits_b1_float32.json", "loop_digits_b1_float32.json"}
    step = blocks.from_dict(found["network_digits_b1_float32.json"]["blocks"][0])
    assert set(step.seconds) == {"ddpm_jax"} and "torch is not installed" in step.missing["torch.compile"]
    (missing,) = map(blocks.from_dict, found["loop_digits_b1_float32.json"]["blocks"])
    assert "No module named" in missing.reasons["a step of the training loop"]
    assert (tmp_path / "out" / files.PAGE).is_file()
