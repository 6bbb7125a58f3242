#!/usr/bin/env bash
# Schedulers of diffusers 0.35.2's Flax classes (jax 0.4.35, flax 0.10.2) that are asked for noise and add none, without
# an error or a warning.
#
# FlaxDDIMScheduler.step(eta=1): it takes the smaller part of eps that goes with noise, and adds none. PyTorch's
#   DDIMScheduler of the same version does.
# FlaxDDPMScheduler.step without a key: the draw is of one fixed key, so all steps add the same z.
# FlaxEulerDiscreteScheduler.add_noise(x_0, noise, t): reads the N + 1 sigmas of its steps at the place t, a timestep out of
#   1000; places beyond the end are the last one, which is 0. So x_0 comes back for t > N.
# These were the last Flax schedulers with fixes; the classes were removed after 0.39.
# Seen: two steps with eta 1 differ by 0, and from the one with eta 0 by 0.84; the draws at t = 500 and 900, over their
# standard deviation, by less than 1e-6; add_noise at t = 500 of 10 steps gives x_0.
# Fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet "diffusers==0.35.2" "jax==0.4.35" "jaxlib==0.4.35" "flax==0.10.2" "transformers==4.57.6"
cd "$folder"
bin/python - <<'PYTHON'
import jax
import jax.numpy as jnp
import numpy as np
from diffusers import FlaxDDIMScheduler, FlaxDDPMScheduler, FlaxEulerDiscreteScheduler

x, eps = (jax.random.normal(jax.random.key(i), (1, 4, 4, 3)) for i in range(2))
off = lambda a, b: float(jnp.abs(jnp.asarray(a) - jnp.asarray(b)).max())

ddim = FlaxDDIMScheduler()
state = ddim.set_timesteps(ddim.create_state(), 10)
first, again = (ddim.step(state, eps, 500, x, eta=1.0).prev_sample for _ in range(2))
mean = ddim.step(state, eps, 500, x, eta=0.0).prev_sample
print(f"DDIM, eta 1: two steps differ by {off(first, again):.3g}; from eta 0 by {off(first, mean):.3g}")

ddpm = FlaxDDPMScheduler()
state = ddpm.create_state()
nothing = jnp.zeros_like(x)  # of which a step leaves its noise alone
draws = [ddpm.step(state, nothing, t, nothing).prev_sample for t in (500, 900)]
draws = [draw / jnp.std(draw) for draw in draws]
print(f"DDPM without a key: draws at t = 500 and 900 differ by {off(*draws):.3g}, and are of size {off(draws[0], 0):.3g}")

euler = FlaxEulerDiscreteScheduler()
state = euler.set_timesteps(euler.create_state(), 10)
noised = euler.add_noise(state, x, eps, jnp.array([500]))
print(f"Euler, add_noise at t = 500 of 10 steps: differs from x_0 by {off(noised, x):.3g}")
same = off(first, again) == 0 and off(*draws) < 1e-5 and off(noised, x) == 0
assert same and off(first, mean) > 0.1 and off(draws[0], 0) > 1, "this has changed"
PYTHON
