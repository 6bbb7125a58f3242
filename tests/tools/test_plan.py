"""The pod planner: plans from what compilers say, the command, and compilations for TPUs."""

import dataclasses
import functools
import importlib.metadata
import importlib.util
import json
import re
import subprocess

import jax
import pytest

from ddpm_jax import cli
from ddpm_jax.cli import parsing
from ddpm_jax.config.defaults import resolved
from ddpm_jax.config.run import Config, DataConfig, ModelConfig, ParallelConfig, SampleConfig, TrainConfig
from ddpm_jax.tools.plan import command, planner, suggestions, table, worker
from ddpm_jax.tools.plan.chips import GIB, parse
from ddpm_jax.train import loop

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (pip install 'ddpm-jax[tpu-plan]')"
)
TINY = Config(
    model=ModelConfig(channels=8, channel_multipliers=(1,), attention_resolutions=()),
    sample=SampleConfig(num_steps=3, num_images=2),
    train=TrainConfig(batch_size=8),
)


# ------------------------------------------------------------------------------------------------------------ plans


def found_by_compiler(**changes):
    """What a worker answers; a chip of v5e computes for 1 s and reads for 2 s."""
    return {
        "state_bytes": {"parameters": 100, "ema": 100, "optimizer": 200},
        "num_calls": 1,
        "memory": {"argument": 450, "output": 420, "alias": 410, "temp": 1000, "generated_code": 7},
        "flops": 197e12,
        "hbm_bytes": 2 * 819e9,
        "collectives": [{"operation": "all-reduce", "num_bytes": n, "group_size": 4} for n in (60, 40)],
        "compile_seconds": 5.0,
    } | changes


def test_a_plan_that_fits():
    plan = planner.judge("train", TINY, parse("v5e:2x2"), 4, 8, found_by_compiler())
    assert plan.fits and plan.suggestions == () and plan.cost is not None
    assert plan.cost.used_bytes == 450 + (420 - 410) + 1000 + 7
    assert plan.cost.exchanges == (planner.Exchange("all-reduce", 4, 2, 100),)
    assert plan.cost.roofline.limit == "memory" and plan.cost.images_per_second == pytest.approx(8 / 2)
    calls = planner.judge("sampler", TINY, parse("v5e:2x2"), 1, 8, found_by_compiler(num_calls=3, collectives=[]))
    assert calls.cost is not None and calls.cost.seconds == pytest.approx(6)


def test_a_plan_that_does_not_fit():
    plan = planner.judge("train", TINY, parse("v5e:2x2"), 4, 8, found_by_compiler(flops=1.0) | {"exhausted": OUT[0]})
    assert not plan.fits and plan.cost is None
    assert plan.problem == "about 35.99 GiB needed of 15.75 GiB on a chip"
    # The compiler may accept a program that, with its arguments, is more than a chip has.
    memory = found_by_compiler()["memory"] | {"temp": 20 * GIB}
    plan = planner.judge("train", TINY, parse("v5e:2x2"), 4, 80, found_by_compiler(memory=memory))
    assert plan.problem == "about 20.00 GiB needed of 16.00 GiB on a chip"
    assert "train.batch_size of at most about 60, 15 images on a chip" in plan.suggestions  # 20 images take 20 GiB


OUT = [
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (35.99G) exceeds "
    "available HBM (15.75G).",
    "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 22.50G of 512.0M hbm. Exceeded hbm capacity by 7G",
]


def test_the_compilers_words_about_memory():
    assert planner.memory_of(OUT[0]) == (int(35.99 * GIB), int(15.75 * GIB))
    assert planner.memory_of(OUT[1]) == (int(22.5 * GIB), 512 * 2**20)
    with pytest.raises(ChildProcessError, match="something else"):
        planner.memory_of("RESOURCE_EXHAUSTED: something else")


def test_a_batch_that_the_chips_cannot_share_is_not_compiled():
    config = dataclasses.replace(TINY, train=TrainConfig(batch_size=70))
    plan = planner.plan_train(config, parse("v5e:4x8"), (8, 8, 1))
    assert plan.problem == "train.batch_size 70 is not divisible by 32 chips"
    assert plan.suggestions == ("train.batch_size 64 or 96",)
    assert suggestions.multiples(128, 256) == "train.batch_size 256"


def test_a_mesh_of_another_size_is_not_compiled():
    config = dataclasses.replace(TINY, parallel=ParallelConfig({"data": 2, "fsdp": 4}))
    plan = planner.plan_train(config, parse("v5e:2x2"), (8, 8, 1))
    assert plan.problem == "parallel.mesh has 8 places for 4 chips"
    assert plan.suggestions == ("--parallel.mesh data 1 fsdp 4",)


def test_suggested_options_are_those_of_the_command():
    found = suggestions.to_fit(
        needed_bytes=400,
        available_bytes=100,
        state_bytes=60,
        num_images=64,
        num_chips=32,
        batch="train.batch_size",
        remat_left=True,
        fsdp=1,
    )
    options = " ".join(re.match("[^:]*", line).group() for line in found if line.startswith("--")).split()
    config = parsing.parse(command.PlanArguments, options, "plan", command.PlanArguments()).config
    assert config.model.remat and config.parallel.mesh == {"data": 16, "fsdp": 2}


def test_accumulation_is_refused():
    config = dataclasses.replace(TINY, train=TrainConfig(batch_size=64, accumulate=4))
    with pytest.raises(ValueError, match=r"got train.accumulate 4: plan .* --train.batch-size 16$"):
        planner.plan_train(config, parse("v5e:2x2"), (8, 8, 1))


def test_table_and_json(tmp_path):
    fits = planner.judge("train", TINY, parse("v5e:2x2"), 4, 8, found_by_compiler())
    config = dataclasses.replace(TINY, train=TrainConfig(batch_size=70))
    not_compiled = planner.plan_train(config, parse("v5e:4x8"), (8, 8, 1))
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.table([fits, not_compiled]).split("\n")
    ]
    rows = {cells[0]: cells[1:] for cells in lines}
    assert rows[""] == ["v5e:2x2", "v5e:4x8"] and rows["fits"] == ["yes", "no"] and rows["chips"] == ["4", "32"]
    assert rows["step, ms at least"] == ["2000.000", "-"] and rows["limit"] == ["memory", "-"]
    assert rows["images/s at most"] == ["4", "-"] and "network calls" not in rows
    exchanged = [
        {"operation": "all-gather", "num_bytes": 2**20, "group_size": 2},
        {"operation": "all-reduce", "num_bytes": 2**21, "group_size": 4},
    ]
    meshed = planner.judge("train", TINY, parse("v5e:2x2"), 4, 8, found_by_compiler(collectives=exchanged))
    assert "1 all-gather of 1.0 MiB among 2, 1 all-reduce of 2.0 MiB |" in table.table([meshed])
    path = tmp_path / "plans" / "plan.json"
    command.write(path, {"image_shape": [8, 8, 1]}, [fits, not_compiled])
    read = json.loads(path.read_text())
    assert read["plans"][0]["cost"]["roofline"]["memory"] == 2 and read["plans"][0]["fits"] is True
    assert read["plans"][1]["cost"] is None and read["chips"]["v5e"]["source"].startswith("https://")


def test_the_command_keeps_what_it_has_when_a_later_compilation_fails(tmp_path, monkeypatch):
    def plan(program, config, topology, shape):
        assert (config, shape) == (resolved(TINY, (8, 8, 1)), (8, 8, 1))
        if topology.name == fails:
            raise ChildProcessError("no")
        return planner.judge(program, config, topology, 1, 8, found_by_compiler())

    monkeypatch.setattr(command, "check_libtpu", lambda: None)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.2")
    monkeypatch.setattr(command, "plan_train", functools.partial(plan, "train"))
    monkeypatch.setattr(command, "plan_sampler", functools.partial(plan, "sampler"))
    path, said = tmp_path / "plan.json", []
    names = ("v5e:2x2", "v5e:4x8", "v4:2x2x1")
    planned = lambda: [(p["program"], p["topology"]) for p in json.loads(path.read_text())["plans"]]
    fails = "v4:2x2x1"
    with pytest.raises(ChildProcessError):
        command.run(command.PlanArguments(TINY, topology=names, json=path), said.append)
    assert planned() == [("train", "v5e:2x2"), ("train", "v5e:4x8")]
    fails = None
    command.run(command.PlanArguments(TINY, topology=names, json=path), said.append)
    # The sampler runs on one chip, so a chip is enough, whatever slices it is in.
    assert [p for p in planned() if p[0] == "sampler"] == [("sampler", "v5e:2x2"), ("sampler", "v4:2x2x1")]
    assert [p for p in planned() if p[0] == "train"] == [("train", name) for name in names]
    assert "jax 1.2, jaxlib 1.2, libtpu 1.2" in said[-2]


# ----------------------------------------------------------------------------------------------------- image shapes


@pytest.mark.parametrize(
    ("name", "size", "given", "shape"),
    [
        ("digits", None, None, (8, 8, 1)),
        ("cifar10", None, None, (32, 32, 3)),
        ("celeb_a", 64, None, (64, 64, 3)),
        ("no_such_folder.npz", None, (5, 6, 3), (5, 6, 3)),
    ],
)
def test_image_shapes_without_images(name, size, given, shape, tmp_path, monkeypatch):
    data = DataConfig(name=name, image_size=size, dir=str(tmp_path / "nothing"))
    assert command.image_shape(Config(data=data), given) == shape
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize(
    ("name", "size", "given", "message"),
    [
        ("pictures.npz", None, None, "plan reads no images: give --image-shape"),
        ("cifar11", None, None, "unknown data set 'cifar11'.*give --image-shape"),
        ("oxford_flowers102", None, None, "differ in size.*give --image-shape"),
        ("digits", None, (8, 0, 1), r"--image-shape must be at least 1 .* got \(8, 0, 1\)"),
        ("digits", 16, (8, 8, 1), r"--image-shape \(8, 8, 1\) contradicts data.image_size 16"),
    ],
)
def test_image_shapes_that_cannot_be(name, size, given, message):
    with pytest.raises(ValueError, match=message):
        command.image_shape(Config(data=DataConfig(name=name, image_size=size)), given)


def test_a_run_is_prepared_without_its_data():
    config = dataclasses.replace(TINY, data=DataConfig(name="imagenet2012", dir="/nowhere"))
    run = loop.prepare(config, jax.devices()[:1], worker.without_images((8, 8, 3)))
    assert jax.eval_shape(run.init).params["conv_in"]["kernel"].shape[-2] == 3
    with pytest.raises(AssertionError, match="a plan has no images"):
        run.batch(0)


@pytest.mark.parametrize("mesh", [{}, {"data": 2, "fsdp": 2}])
def test_the_batch_of_a_plan_is_that_of_a_run(mesh):
    config = dataclasses.replace(TINY, parallel=ParallelConfig(mesh))
    run = loop.prepare(config, jax.devices()[:4])
    planned, given = worker.batch(run)["image"], run.batch(0)["image"]
    assert (planned.shape, planned.dtype) == (given.shape, given.dtype)
    assert planned.sharding.shard_shape(planned.shape)[0] == planned.shape[0] // 4
    if mesh:  # pmap's is an array of the host until the step takes it
        assert planned.sharding.is_equivalent_to(given.sharding, given.ndim)


# ---------------------------------------------------------------------------------------------------------- a TPU's


def test_without_libtpu(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        cli.main(["plan", "--topology", "v5e:2x2"])
    assert "pip install 'ddpm-jax[tpu-plan]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("status", "said", "message"),
    [
        (1, "Traceback\n  line\nKeyError: 'x'\n", "for v5e:2x2: KeyError: 'x'$"),
        (-9, "", "exit status -9, and nothing said"),
    ],
)
def test_a_compiler_that_fails(status, said, message, monkeypatch):
    monkeypatch.setattr(planner, "check_libtpu", lambda: None)
    failed = lambda command, **options: subprocess.CompletedProcess(command, status, "", said)
    monkeypatch.setattr(subprocess, "run", failed)
    with pytest.raises(ChildProcessError, match=message):
        planner.plan_sampler(TINY, parse("v5e:2x2"), (8, 8, 1))


def test_no_topology(capsys):
    with pytest.raises(SystemExit):
        cli.main(["plan"])
    assert "plan needs a --topology, such as v5e:4x8" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5e", "such as v5e:4x8, got 'v5e'"),
        ("4x8", "got '4x8'"),
        ("v5e:4by8", "got 'v5e:4by8'"),
        ("v5x:4x8", "unknown chip of a topology 'v5x'; did you mean 'v5p'? (known: v4, v5e, v5p, v6e)"),
        ("v4:2x2", "'v4:2x2' must have the form v4:AxBxC"),
        ("v5e:0x4", "'v5e:0x4' must have the form v5e:AxB, with lengths of at least 1"),
    ],
)
def test_bad_topologies_are_one_line(name, message, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["plan", "--topology", name])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1 and message in said


@needs_libtpu
def test_a_slice_that_libtpu_does_not_know_is_one_line(capsys):
    with pytest.raises(SystemExit):
        cli.main(["plan", "--topology", "v5e:3x5", "--train.batch-size", "15"])
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "libtpu does not accept topology 'v5e:3x5': INVALID_ARGUMENT" in said


@needs_libtpu
def test_the_train_step_compiled_for_four_chips():
    """Float32 gradients are reduced once per step, and the state is held once by every chip."""
    plan = planner.plan_train(TINY, parse("v5e:2x2"), (8, 8, 1))
    assert plan.fits and plan.cost is not None
    num_parameters = sum(leaf.size for leaf in jax.tree.leaves(parameters(TINY)))
    assert plan.state_bytes["parameters"] == plan.state_bytes["ema"] == 4 * num_parameters
    assert plan.state_bytes["optimizer"] == 2 * 4 * num_parameters + 2 * 4  # two moments, and two counters
    assert {(one.operation, one.group_size) for one in plan.cost.exchanges} == {("all-reduce", 4)}
    assert plan.cost.exchanges[0].num_bytes == pytest.approx(4 * num_parameters, rel=0.05)
    assert sum(plan.state_bytes.values()) < plan.cost.argument_bytes <= plan.cost.used_bytes < 16 * GIB
    assert plan.cost.seconds > 0 and plan.cost.flops > 0


@needs_libtpu
def test_the_train_step_compiled_for_a_mesh():
    """Each chip holds half of what can be halved; bytes on the wire are those of the gradient and the parameters."""
    config = dataclasses.replace(TINY, parallel=ParallelConfig({"data": 2, "fsdp": 2}))
    plan = planner.plan_train(config, parse("v5e:2x2"), (8, 8, 1))
    assert plan.fits and plan.cost is not None
    sizes = [leaf.size for leaf in jax.tree.leaves(parameters(TINY))]
    halved = sum(size for size in sizes if size > 1)
    assert halved >= sum(sizes) - 1  # an output of one channel has one bias
    assert plan.state_bytes["parameters"] == plan.state_bytes["ema"] == 4 * (sum(sizes) - halved // 2)
    assert plan.state_bytes["optimizer"] == 2 * plan.state_bytes["ema"] + 2 * 4
    found = {(one.operation, one.group_size): one.num_bytes for one in plan.cost.exchanges}
    # Summed over all four at once, or over fsdp first, whole or as shards, and then over data.
    summed = found.get(("all-reduce", 4), 0) + found.get(("reduce-scatter", 2), 0) + found["all-reduce", 2]
    assert 4 * sum(sizes) < summed < 1.1 * 2 * 4 * sum(sizes)
    # Matrices and kernels are gathered as bfloat16, in which the chip multiplies.
    kernels = sum(leaf.size for leaf in jax.tree.leaves(parameters(TINY)) if leaf.ndim > 1)
    assert found["all-gather", 2] == pytest.approx(2 * kernels, rel=0.1)


@needs_libtpu
@pytest.mark.slow
def test_a_batch_that_is_too_large_and_the_one_suggested():
    config = dataclasses.replace(TINY, train=TrainConfig(batch_size=2**22))
    plan = planner.plan_train(config, parse("v5e:2x2"), (8, 8, 1))
    assert not plan.fits and plan.cost is None
    batch_size = int(plan.suggestions[0].split("about ")[1].split(",")[0])
    config = dataclasses.replace(TINY, train=TrainConfig(batch_size=batch_size // 2))
    assert planner.plan_train(config, parse("v5e:2x2"), (8, 8, 1)).fits


def parameters(config):
    return jax.eval_shape(loop.prepare(config, jax.devices()[:1], worker.without_images((8, 8, 1))).init).params
