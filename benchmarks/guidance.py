"""What guidance and conditions cost beside the network's bare calls.

Run:  python -m benchmarks.guidance [--rounds 9] [--steps 10]

    guided               N steps of DDIM with both answers at each, beside N steps of the network with twice the batch
    interval             the same with guidance in 30 % of the rows, beside guidance in all
    low_res, mask        N steps of a network that is told an image, beside N calls of that network

Ratios are medians of interleaved rounds with the interval that holds the true median.
"""

import argparse
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import conditions, guidance, keys, samplers, schedules
from ddpm_jax.models import bind
from ddpm_jax.samplers.grids import leading
from ddpm_jax.tools.bench.interleave import interleaved, ratios, spread, warmed
from ddpm_jax.tools.bench.networks import NETWORKS, Network, parameters

CLASSES = 10
CASES = (("cifar10", 8), ("digits", 64))


def jobs_of_guidance(name: str, batch: int, num_steps: int):
    """Three jobs of one network with classes."""
    entry = NETWORKS[name]
    model, shape = dataclasses.replace(entry.model, num_classes=CLASSES + 1), (batch, *entry.image_shape)
    y = jnp.arange(batch, dtype=jnp.int32) % CLASSES
    params = jax.device_put(parameters(Network(model, entry.image_shape), y=y[:1]))
    table, key = samplers.ddim(leading(schedules.linear(1000), num_steps)), keys.make(0)
    make_denoise = lambda model_fn: samplers.denoiser(model_fn, "eps", clip=1.0)
    network = lambda params: lambda x, t, told: bind(model, params, **told)(x, t)

    @jax.jit
    def guided(params, table, y):
        asked = guidance.asked(network(params), {"y": y}, {"y": jnp.full_like(y, CLASSES)})
        return samplers.sample(guidance.guided(asked, make_denoise, guidance.CLASSIFIER_FREE), table, key, shape)

    @jax.jit
    def doubled(params, table, y):
        return samplers.sample(make_denoise(bind(model, params, y=y)), table, key, (2 * batch, *shape[1:]))

    on = lambda interval: jax.device_put(jax.tree.map(
        np.float32, guidance.on(table, guidance.CLASSIFIER_FREE, scale=2.0, interval=interval)))  # fmt: skip
    everywhere, some = on(None), on(np.arange(num_steps) < round(0.3 * num_steps))
    plain, twice = jax.device_put(jax.tree.map(np.float32, table)), jnp.concatenate([y, y])
    run = lambda function, *arguments: lambda: jax.block_until_ready(function(*arguments))
    return {
        "guided": run(guided, params, everywhere, y),
        "twice the batch": run(doubled, params, plain, twice),
        "interval": run(guided, params, some, y),
    }


def jobs_of_images(name: str, batch: int, num_steps: int):
    """N steps and N calls, of a network that is told a smaller image, and of one that is told a part of it."""
    entry, found = NETWORKS[name], {}
    shape = (batch, *entry.image_shape)
    image = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    table = samplers.ddim(leading(schedules.linear(1000), num_steps))
    for kind, condition in (("low_res", conditions.LowRes(2)), ("mask", conditions.Mask())):
        record = {"image": jnp.asarray(image)}
        told = dict(jax.vmap(condition.given)(record, jax.random.split(keys.make(0), batch)))
        one_of = {argument: value[:1] for argument, value in told.items()}
        params = jax.device_put(parameters(entry, 0, **one_of))

        def call(params, x, told, model=entry.model):
            return bind(model, params, **told)(x, jnp.full(batch, 500.0))

        def steps(params, told, model=entry.model):
            denoise = samplers.denoiser(bind(model, params, **told), "eps", clip=1.0)
            return samplers.sample(denoise, table, keys.make(0), shape)

        one, all_of_them, x = jax.jit(call), jax.jit(steps), jax.random.normal(keys.make(1), shape)

        def calls(one=one, params=params, x=x, told=told):
            for _ in range(num_steps):
                jax.block_until_ready(one(params, x, told))

        found[f"{kind}, calls"] = calls
        found[kind] = lambda run=all_of_them, params=params, told=told: jax.block_until_ready(run(params, told))
    return found


def main(rounds: int, num_steps: int) -> None:
    """Print a table of ratios."""
    print("| network, batch | what | ratio [interval] | rounds |\n|-|-|-|-|")
    for name, batch in CASES:
        times = interleaved(warmed(jobs_of_guidance(name, batch, num_steps))[0], rounds)
        times |= interleaved(warmed(jobs_of_images(name, batch, num_steps))[0], rounds)
        for what, beside in (
            ("guided", "twice the batch"), ("interval", "guided"),
            ("low_res", "low_res, calls"), ("mask", "mask, calls"),
        ):  # fmt: skip
            found = spread(ratios(times[what], times[beside]))
            interval = f"{found.median:.3f} [{found.low:.3f}, {found.high:.3f}]"
            print(f"| {name}, {batch} | {what} / {beside} | {interval} | {found.n} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=10)
    options = parser.parse_args()
    main(options.rounds, options.steps)
