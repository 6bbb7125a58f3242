#!/usr/bin/env bash
# diffusers 0.42.1 (torch 2.13.0): EulerDiscreteScheduler(interpolation_type="log_linear", timestep_type="continuous") has
# N + 1 timesteps for num_inference_steps=N, all others N.
#
# log_linear makes N + 1 sigmas, continuous takes 0.25 log(sigma) of every sigma as a timestep. The network is called once
# more than asked for, and the sigma told in the extra call is sigma_min.
# Seen for 10: linear/discrete 10, linear/continuous 10, log_linear/discrete 10, log_linear/continuous 11 timesteps;
# 11 sigmas with linear, 12 with log_linear.
# Fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet "torch==2.13.0" "diffusers==0.42.1" numpy
cd "$folder" && "$folder/env/bin/python" - <<'PYTHON'
from diffusers import EulerDiscreteScheduler

found = {}
for interpolation in ("linear", "log_linear"):
    for kind in ("discrete", "continuous"):
        scheduler = EulerDiscreteScheduler(
            interpolation_type=interpolation, timestep_type=kind, prediction_type="v_prediction"
        )
        scheduler.set_timesteps(10)
        found[interpolation, kind] = len(scheduler.timesteps)
        print(interpolation, kind, len(scheduler.timesteps), "timesteps,", len(scheduler.sigmas), "sigmas")
assert [*found.values()] == [10, 10, 10, 11], "this has changed"
PYTHON
