#!/usr/bin/env bash
# diffusers 0.42.1 (torch 2.13.0): UnCLIPScheduler.step goes from t to t - 1 unless it is told prev_timestep, whatever the
# list that set_timesteps made: the loop that is right for the other schedulers leaves most of the noise in the sample.
#
# The model is exact, for Gaussian data of standard deviation 0.5. DDPMScheduler, the same sampler, finds the step before
# in its own list.
# Seen: 25 steps: standard deviation 0.966 as it is, 0.441 with prev_timestep, 0.443 with DDPMScheduler; with 1000 steps,
# where both are the same, 0.499.
# Fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet "torch==2.13.0" "diffusers==0.42.1" numpy
cd "$folder" && "$folder/env/bin/python" - <<'PYTHON'
import torch
from diffusers import DDPMScheduler, UnCLIPScheduler

DATA = 0.5


def spread(scheduler, num_steps, say_previous=False):
    scheduler.set_timesteps(num_steps)
    generator = torch.Generator().manual_seed(0)
    x, times = torch.randn((20000, 1), generator=generator), scheduler.timesteps.tolist()
    for t, previous in zip(times, [*times[1:], None]):
        keep = scheduler.alphas_cumprod[t]
        eps = (1 - keep).sqrt() * x / (keep * DATA**2 + 1 - keep)
        more = {"prev_timestep": previous} if say_previous else {}
        x = scheduler.step(eps, t, x, generator=generator, **more).prev_sample
    return x.std().item()


unclip = lambda: UnCLIPScheduler(clip_sample=False)
ddpm = DDPMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=False)
silent, said, theirs = spread(unclip(), 25), spread(unclip(), 25, say_previous=True), spread(ddpm, 25)
every = spread(unclip(), 1000)
print(f"25 steps: {silent:.3f} as it is, {said:.3f} told, DDPM {theirs:.3f}; 1000 steps: {every:.3f}")
assert silent > 0.9 and abs(said - theirs) < 0.01 and abs(every - DATA) < 0.01, "this has changed"
PYTHON
