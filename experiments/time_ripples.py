"""How a network's answer depends on the time that it is told: a slope, and ripples between the timesteps.

Run:       python experiments/time_ripples.py runs/digits OUT.json
Needs:     a minute on a CPU
Expect:    no paper
Measured:  docs/learned_samplers.md

Networks are trained at integer timesteps, and their time's embedding has waves of 1 radian a timestep, so between
timesteps nothing holds the answer. Of x_0 at fixed X = alpha x_0 + sigma eps on a teacher's path, this gives the root
mean square over 32 images and a range of times told of: the exact derivative by the time told; the slope, which is the
secant of the range; the derivative's distance from the slope; and the distance of x_0 itself from a straight line.
"""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import opening
from ddpm_jax.distil.command import TEACHER, TEACHER_GRID, network_of
from ddpm_jax.distil.family import times_of
from ddpm_jax.distil.fit import RIPPLE, pair_key, predict
from ddpm_jax.distil.regression import path_of
from ddpm_jax.host.storage import write_atomically
from ddpm_jax.samplers.catalogue import make_table

IMAGES, TEACHER_STEPS, TOLD = 32, 100, 49  # times told, from RIPPLE before to RIPPLE after
AT = (50, 100, 200, 300, 500, 700)


def rms(images: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(images, dtype=np.float64))))


def main(run: str, out: str) -> None:
    source = opening.open(run, print)
    schedule, network = times_of(source.schedule), network_of(source)
    teacher = make_table(TEACHER, source.schedule, TEACHER_STEPS, TEACHER_GRID)
    path = path_of(network, teacher, pair_key(0), 0, IMAGES, IMAGES)
    at = lambda x, time, told: predict(network, schedule, x, time, told, network.data)
    both = jax.jit(lambda x, time, told: jax.jvp(lambda told: at(x, time, told), (told,), (jnp.ones_like(told),)))
    result = []
    for time in AT:
        alpha, sigma = map(float, schedule.at(jnp.float32(time)))
        x = alpha * path.at(sigma / alpha)
        told = np.linspace(-RIPPLE, RIPPLE, TOLD, dtype=np.float32)
        x_0, derivatives = map(np.stack, zip(*(both(x, np.float32(time), time + each) for each in told), strict=True))
        slope = (x_0[-1] - x_0[0]) / (2 * RIPPLE)
        line = np.mean(x_0, axis=0) + np.multiply.outer(told, slope)
        found = {
            "time": time,
            "derivative": rms(derivatives),
            "slope": rms(slope),
            "derivative_from_slope": rms(derivatives - slope),
            "x_0_from_line": rms(x_0 - line),
        }
        result.append(found)
        print(json.dumps(found), flush=True)
    write_atomically(Path(out), json.dumps({"run": run, "half_width": RIPPLE, "at": result}, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
