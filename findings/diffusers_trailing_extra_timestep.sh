#!/usr/bin/env bash
# diffusers 0.42.1 (torch 2.13.0): timestep_spacing "trailing" makes 62 timesteps of num_inference_steps=61, the last -1.
#
# np.arange(1000, 0, -1000 / 61) has 62 elements, by the rounding of its step; rounded and less one, the last is -1. The
# classes that look alphas_cumprod up by the timestep then read alphas_cumprod[-1], the noisiest entry, in the last step:
# DDIM and DDPM divide an almost clean image by sqrt(4e-5), and clip_sample leaves +-1. For up to 200 steps of T = 1000 it
# is so with N = 61, 103, 121, 122.
# Seen: 60 steps: 60 timesteps, the last 16; mean 0.2508, largest 0.2877. 61 steps: 62, -1; mean 1.0000, largest 1.0000.
# Fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet "torch==2.13.0" "diffusers==0.42.1" numpy
cd "$folder" && "$folder/env/bin/python" - <<'PYTHON'
import torch
from diffusers import DDIMScheduler


def drawn(num_steps):
    """The exact network of a data set that is one image of value 0.25; it takes t = -1 for the cleanest time it knows."""
    scheduler = DDIMScheduler(timestep_spacing="trailing")
    scheduler.set_timesteps(num_steps)
    x = torch.randn((1, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    for t in scheduler.timesteps:
        keep = scheduler.alphas_cumprod[max(int(t), 0)]
        x = scheduler.step((x - keep.sqrt() * 0.25) / (1 - keep).sqrt(), t, x).prev_sample
    return scheduler.timesteps.tolist(), float(x.mean()), float(x.abs().max())


for n in (60, 61):
    times, mean, largest = drawn(n)
    print(f"{n} steps: {len(times)} timesteps, the last {times[-1]}; mean {mean:.4f}, largest {largest:.4f}")
    expected = (60, 16, False) if n == 60 else (62, -1, True)
    assert (len(times), times[-1], largest > 0.9) == expected, "this has changed"


def extra(n):
    scheduler = DDIMScheduler(timestep_spacing="trailing")
    scheduler.set_timesteps(n)
    return len(scheduler.timesteps) != n


found = [n for n in range(1, 201) if extra(n)]
print("up to 200 steps:", found)
assert found == [61, 103, 121, 122], "this has changed"
PYTHON
