"""Public functions called from Python: schedules, tables of samplers, q and p, samplers of t, weightings, batches."""

from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from ddpm_jax import data, process, samplers, schedules, timesteps, weightings
from ddpm_jax.samplers import denoise, grids
from ddpm_jax.samplers.catalogue import CATALOGUE, GRIDS, make_table, make_table_at
from ddpm_jax.samplers.grids import dpm_grids, sigma_grids
from tests.fuzz.common import FLOATS, NUMBERS, TEXTS, WHOLE, WRONG, fuzz, refused, sizes

SCHEDULE = schedules.linear(20, beta_end=0.3)
SCHEDULES = [SCHEDULE, schedules.jsd(12), schedules.cosine(1), schedules.respace(SCHEDULE, [1, 4, 9])]
LENGTHS = st.one_of(st.integers(-3, 60), WHOLE, WRONG)


def options(functions: dict, also=()):
    """(name, keyword arguments): mostly those that the function has, and sometimes one that another has."""
    every = sorted({name for function in functions.values() for name in function.__kwdefaults__ or {}} | {"beta_edn"})

    def arguments(name: str):
        own = sorted(functions[name].__kwdefaults__ or {}) if name in functions else []
        keys = st.sampled_from(own * 9 + every)
        return st.tuples(st.just(name), st.dictionaries(keys, st.one_of(FLOATS, NUMBERS, WRONG), max_size=2))

    return st.sampled_from([*functions, *also]).flatmap(arguments)


@sizes("schedules")
def test_schedules(examples):
    def make(example):
        (name, arguments), length = example
        names = ["betas", "beta", "schedule", "num_timesteps", *arguments]
        schedule = refused(lambda: schedules.make(name, length, **arguments), names)
        if schedule is not None:
            assert all(0 < beta <= 1 for beta in schedule.betas_float64)

    def others(example):
        call, *arguments = example
        refused(lambda: call(*arguments), ["betas", "timesteps", "n_timestep", "num_timesteps", "schedule"])

    lists = st.one_of(st.lists(st.one_of(FLOATS, WHOLE, WRONG), max_size=4), WRONG, st.lists(st.floats(0.01, 1)))
    whole_lists = st.one_of(st.lists(st.one_of(st.integers(-1, 25), WHOLE), max_size=5), lists)
    ldm = st.sampled_from(["linear", "cosine", "sqrt", "sqrt_linear", "quad", ""])
    fuzz(examples // 2, st.tuples(options(schedules.BY_NAME, ["cosin", ""]), LENGTHS), make)
    fuzz(
        examples - examples // 2,
        st.one_of(
            st.tuples(st.just(schedules.from_betas), lists),
            st.tuples(st.just(schedules.respace), st.sampled_from(SCHEDULES), whole_lists),
            st.tuples(st.just(schedules.zero_terminal_snr), st.sampled_from(SCHEDULES)),
            st.tuples(st.just(schedules.make_beta_schedule), ldm, LENGTHS, FLOATS, FLOATS, FLOATS),
        ),
        others,
    )


@sizes("tables")
def test_tables(examples):
    def check(example):
        name, schedule, steps, grid = example
        where = [
            "num_steps",
            "sampler",
            "grid",
            "timesteps",
            "levels",
            "alphas_cumprod",
            "log-SNR",
            "sigma",
            "noise",
            "betas",
        ]
        if isinstance(steps, list):
            refused(lambda: make_table_at(name, schedule, steps), where)
        else:
            table = refused(lambda: make_table(name, schedule, steps, grid), where)
            assert table is None or table.num_calls >= 1

    names, spreads = st.sampled_from([*CATALOGUE, "dimm", ""]), st.sampled_from([None, None, *GRIDS, "karas"])
    steps = st.one_of(st.integers(-1, 25), LENGTHS, st.lists(st.one_of(st.integers(-1, 20), WHOLE), max_size=6))
    fuzz(examples, st.tuples(names, st.sampled_from(SCHEDULES), steps, spreads), check)


@sizes("grids")
def test_grids(examples):
    def check(example):
        call, schedule, steps, keywords = example
        names = ["num_steps", "spacing", "section", "timesteps", "last", "levels", "alphas_cumprod", *keywords]
        refused(lambda: call(schedule, steps, **keywords), [*names, "noise must decrease", "ddim", "t_end", "sigmas"])

    texts = st.sampled_from(["10,10", "ddim5", "fast27", "ddim", "5,x", ",", "²", "99999999999"])
    spacing = st.one_of(LENGTHS, st.lists(st.one_of(st.integers(-1, 9), WRONG), max_size=4), texts)
    last = st.dictionaries(st.just("last"), st.one_of(st.sampled_from(["clean", "first"]), TEXTS), max_size=1)
    offset = st.dictionaries(st.just("offset"), st.integers(-2, 30), max_size=1)
    rho = st.dictionaries(st.just("rho"), NUMBERS, max_size=1)
    t_end = st.dictionaries(st.sampled_from(["t_end", "lambda_min"]), FLOATS, max_size=2)
    schedule = st.sampled_from(SCHEDULES)
    fuzz(
        examples,
        st.one_of(
            st.tuples(st.just(grids.sections), schedule, spacing, last),
            st.tuples(st.just(grids.leading), schedule, LENGTHS, offset),
            st.tuples(st.just(grids.from_timesteps), schedule, spacing, last),
            st.tuples(st.just(sigma_grids.karras), schedule, LENGTHS, rho),
            st.tuples(st.just(dpm_grids.time_uniform), schedule, LENGTHS, t_end),
            st.tuples(st.just(dpm_grids.log_snr_uniform), schedule, LENGTHS, t_end),
        ),
        check,
    )


@sizes("process")
def test_process(examples):
    shapes = st.sampled_from([(2, 3), (2, 6), (3, 3), (2,), (), (0, 3), (2, 3, 1)])
    dtypes = st.sampled_from([jnp.float32, jnp.float32, jnp.bfloat16, jnp.int32, jnp.bool_])
    arrays = st.builds(lambda shape, dtype: np.zeros(shape, dtype), shapes, dtypes)
    t = st.one_of(st.just(np.zeros(2, np.int32)), arrays)
    said = st.one_of(st.sampled_from(["eps", "x_0", "v", "x_prev", "score", "ep"]), WRONG.filter(hashable))
    variance = st.one_of(st.sampled_from([*get_args(process.VarianceType), "fixed"]), WRONG.filter(hashable))
    clip = st.one_of(st.none(), FLOATS, NUMBERS)
    names = ["x_0", "x_t", "eps", "output", "prediction", "variance", "clip", "t must", "z must", "sigma_data"]

    def check(example):
        call, arrays, keywords = example
        refused(lambda: jax.eval_shape(lambda: call(SCHEDULE, *arrays, **keywords)), names)

    def denoised(example):
        clip, prediction, variance, ratio = example
        make = lambda: denoise.thresholded(samplers.denoiser(len, prediction, clip, variance=variance), ratio)
        refused(make, [*names, "ratio"])

    predicted = st.fixed_dictionaries({}, optional={"prediction": said})
    reverse = st.fixed_dictionaries({}, optional={"prediction": said, "variance": variance, "clip": clip})
    fuzz(
        examples - examples // 4,
        st.one_of(
            st.tuples(st.just(process.q_sample), st.tuples(arrays, t, arrays), st.just({})),
            st.tuples(st.just(process.target), st.tuples(arrays, t, arrays), predicted),
            st.tuples(st.just(process.predict), st.tuples(arrays, t, arrays), predicted),
            st.tuples(st.just(process.p_mean_variance), st.tuples(arrays, t, arrays), reverse),
            st.tuples(st.just(process.p_step), st.tuples(arrays, t, arrays, arrays), reverse),
        ),
        check,
    )
    fuzz(examples // 4, st.tuples(clip, said, variance, st.one_of(FLOATS, NUMBERS)), denoised)


def hashable(value) -> bool:
    return value is None or isinstance(value, bool | int | float | str | bytes)


@sizes("timesteps")
def test_timesteps(examples):
    def check(example):
        schedule, (name, arguments) = example
        sampler = refused(
            lambda: timesteps.make(name, schedule, **arguments), ["timestep sampler", "schedule", *arguments]
        )
        if sampler is not None:
            state = jax.eval_shape(sampler.init)
            jax.eval_shape(lambda: sampler.draw(state and sampler.init(), jax.random.key, jnp.arange(3), 3))

    def batches(example):
        refused(lambda: data.batch_indices(*example), ["seed", "step", "batch_size", "num_examples"])

    fuzz(examples // 2, st.tuples(st.sampled_from(SCHEDULES), options(timesteps.BY_NAME, ["uniforn"])), check)
    small = st.one_of(st.integers(-1, 9), FLOATS, WRONG.filter(lambda value: not isinstance(value, int)))
    fuzz(examples - examples // 2, st.tuples(st.one_of(WHOLE, small), st.one_of(WHOLE, small), small, small), batches)


@sizes("weightings")
def test_weightings(examples):
    def check(example):
        schedule, (name, arguments), prediction = example
        weight = refused(lambda: weightings.make(name, **arguments), ["weighting", *arguments])
        if weight is not None:
            names = ["prediction", "weighting", *arguments]
            refused(lambda: jax.eval_shape(lambda: weight(schedule, jnp.arange(1), prediction)), names)

    said = st.one_of(st.sampled_from(["eps", "x_0", "v", "x_prev", "score"]), TEXTS)
    fuzz(examples, st.tuples(st.sampled_from(SCHEDULES), options(weightings.BY_NAME, ["snrr"]), said), check)
