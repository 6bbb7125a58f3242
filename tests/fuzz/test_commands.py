"""Command lines: a refused one ends in exit status 2 and one line that names the option, and writes nothing."""

import contextlib
import io
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import strategies as st

from ddpm_jax import cli, data, interop, samplers
from ddpm_jax.config.run import Config, flatten
from ddpm_jax.data.records import from_arrays
from ddpm_jax.evaluate.likelihood import nll
from ddpm_jax.samplers.catalogue import CATALOGUE, GRIDS
from ddpm_jax.train import loop
from tests.fuzz.common import fuzz, make_run, sizes

NUMBERS = "0 -1 1 2 7 64 1001 nan inf -inf 1e400 1e-320 0.5 -0.0 2147483648 4294967296 -9223372036854775809 0x10 1_0"
TEXTS = "x None True linear -- - --help=1 ~nobody/x é ddpm pndm karras eps hf: hf:a/b@ ./ x.png x.npz x.py"
NUMBERS = st.sampled_from([*NUMBERS.split(), "1" + "0" * 400])
TEXTS = st.sampled_from([*TEXTS.split(), "", " ", "a\0b", "9" * 300])
VALUES = st.one_of(NUMBERS, TEXTS, st.text(max_size=6), st.sampled_from([*CATALOGUE, *GRIDS]))
FIELDS = ["--" + name.replace("_", "-") for name in flatten(Config())]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    with jax.numpy_dtype_promotion("standard"):  # optax, as in training
        yield tmp_path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The directory of a run, with a checkpoint of zeros."""
    return make_run(tmp_path_factory.mktemp("run"))


class Enough(Exception):
    """Everything was checked, and the work would begin."""


def stop(*args, **kwargs):
    raise Enough


def command_line(place, words, names) -> None:
    """Run it: it must reach the work, succeed, or refuse in one line that has one of the names."""
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main(words)
    except Enough:
        return
    except SystemExit as end:
        if end.code in (0, None):
            return  # --help
        message = err.getvalue().strip()
        assert end.code == 2, (end.code, message)
        assert message.startswith("ddpm-jax: ") and len(message.splitlines()) == 1, message
        assert any(name in message for name in names), f"none of {names} is in: {message}"
        assert {path: path.stat().st_mtime_ns for path in place.rglob("*")} == before, "something was written"


def options(allowed, values=VALUES, most=3):
    """A few options with values, as words."""
    option = st.tuples(st.sampled_from(allowed), st.lists(values, min_size=0, max_size=2)).map(
        lambda pair: [pair[0], *pair[1]]
    )
    return st.lists(option, min_size=1, max_size=most)


def names_in(given) -> list[str]:
    """What a message may call these options, the values that no option takes, and what is built from them."""
    options = [option[0].lstrip("-") for option in given]
    values = [value for option in given for value in option[1:] if len(value) > 2]
    names = ["num-images" if name == "n" else name for name in options if name] + values
    shorter = [name.split(".")[-1].replace("-", "_") for name in names]
    return [*names, *(name for name in shorter if len(name) > 2), "nrecognized", "rgument"]


ALSO = {
    "schedule": ["schedule ", "betas", "eps says", "num_steps", "levels"],
    "data.name": ["data set", "image", "no such"],
    "train.batch-size": ["batch size"],
    "train.accumulate": ["batch size"],
    "parallel.mesh": ["mesh", "devices"],
    "objective": ["objective.", "timestep sampler", "weighting", "variance", "prediction"],
    "model": ["channels", "H and W", "divi"],
    "sample.sampler": ["sampler"],
}


@sizes("train")
def test_train(examples, place, monkeypatch):
    digits = from_arrays("digits", {"image": np.zeros((16, 8, 8, 1), np.uint8)})
    real = data.load
    monkeypatch.setattr(data, "load", lambda name, **given: digits if name == "digits" else real(name, **given))

    def fit(config, workdir, report):
        loop.prepare(config)
        raise Enough

    monkeypatch.setattr(loop, "fit", fit)

    def check(given):
        names = names_in(given)
        also = [name for key, more in ALSO.items() if any(word.startswith(key) for word in names) for name in more]
        small = "--model.channels 4 --model.channel-multipliers 1 --model.attention-resolutions --model.num-groups 2"
        words = [word for option in given for word in option]
        command_line(place, ["train", *small.split(), "--schedule.num-timesteps", "50", *words], [*names, *also])

    fuzz(examples, options([*FIELDS, "--workdir", "--train.num-stepz", "--data", "--"], most=2), check)


SAMPLE = (
    "--sampler --num-steps --grid --timesteps -n --num-images --seed --batch-size --label --guidance-scale --out --sedd"
)


@sizes("sample")
def test_sample(examples, place, run, monkeypatch):
    monkeypatch.setattr(samplers, "sample", stop)  # while the program that draws is traced
    sources = st.one_of(
        st.just(str(run)), st.just(str(run)), TEXTS, st.just("/dev/null"), st.just(str(run / "config.json"))
    )

    def check(example):
        source, given = example
        words = [word for option in given for word in option]
        names = [
            source.removeprefix("hf:") or "hf:",
            "SOURCE",
            "num_steps",
            "sampler",
            "grid",
            "timesteps",
            "huggingface",
        ]
        command_line(place, ["sample", source, *words], [*names_in(given), *names])

    good = st.sampled_from(
        [["--num-steps", "2"], ["--sampler", "ddim"], ["-n", "4"], ["--grid", "karras"], ["--timesteps", "3"]]
    )
    given = st.tuples(options(SAMPLE.split(), most=2), st.lists(good, max_size=1)).map(
        lambda pair: [*pair[1], *pair[0]]
    )
    fuzz(examples, st.tuples(sources, given), check)


@sizes("convert")
def test_convert(examples, place, run, monkeypatch):
    monkeypatch.setattr(interop, "save_diffusers", stop)
    also = ["no file or folder", "SOURCE", "FOLDER", "source", "destination", "--sedd", "nrecognized", "huggingface"]

    def check(words):
        command_line(place, ["convert", *words], [*words, *(f"in {Path(word)}" for word in words), *also])

    word = st.one_of(VALUES, st.sampled_from([str(run), "/dev/null", "--sedd", "--source"]))
    fuzz(examples, st.lists(word, max_size=3), check)


@sizes("nll")
def test_nll(examples, place, run, monkeypatch):
    monkeypatch.setattr(nll, "_sum_over", stop)
    monkeypatch.setattr(nll.Path, "mkdir", lambda *args, **kwargs: None)  # of its folder, before the sums

    def check(example):
        source, given = example
        words = [word for option in given for word in option]
        also = [source, f"in {Path(source)}", "WORKDIR", "num_images", "num_steps"]
        command_line(place, ["nll", source, *words], [*names_in(given), *also])

    sources = st.one_of(st.just(str(run)), st.just(str(run)), TEXTS)
    allowed = ["--split", "-n", "--num-images", "--batch-size", "--seed", "--num-steps", "--optimal-steps", "--sedd"]
    values = st.one_of(VALUES, st.sampled_from(["train", "test", "train[:50%]"]))
    fuzz(examples, st.tuples(sources, options(allowed, values)), check)


@sizes("samplers")
def test_samplers(examples, place):
    def check(example):
        start, given = example
        words = [word for option in given for word in option]
        names = [
            *names_in(given),
            *start,
            "subcommand",
            "schedule ",  # its name, its arguments
            "betas",
            "num_steps",
            "sampler",
            "grid",
            "levels",
            "noise",
            "NAME",
        ]
        command_line(place, ["samplers", *start, *words], names)

    start = st.one_of(
        st.tuples(st.just("show"), st.one_of(st.sampled_from([*CATALOGUE]), VALUES)).map(list),
        st.lists(VALUES, max_size=2),
    )
    allowed = ["--num-steps", "--grid", "--schedule.name", "--schedule.num-timesteps", "--schedule.arguments", "--nane"]
    fuzz(examples, st.tuples(start, options(allowed)), check)


@sizes("commands")
def test_commands(examples, place):
    """Whatever the words are, none of them a command's."""
    words = st.lists(
        VALUES.filter(lambda word: not re.fullmatch("train|sample|convert|nll|samplers", word)), max_size=3
    )
    fuzz(examples, words, lambda words: command_line(place, words, ["command"]))
