#!/usr/bin/env bash
# diffusers 0.42.1 (torch 2.13.0): with rescale_betas_zero_snr the sigmas of the schedulers that step in sigma are not
# monotone: the last, of the noisiest timestep, is 4096, and the one before 15406.
#
# alphas_cumprod[-1] is set to 2^-24 in place of 0, which is more than alphas_cumprod[-2] = 4.2e-9 of the rescaled
# default schedule (linear, 1000 steps). Whatever looks a sigma up between those two finds the wrong side.
# Seen: alphas_cumprod 1.7007e-08, 4.2133e-09, 5.9605e-08; sigmas 7668.016, 15406.010, 4096.000.
# Fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet "torch==2.13.0" "diffusers==0.42.1" numpy
cd "$folder" && "$folder/env/bin/python" - <<'PYTHON'
from diffusers import EulerDiscreteScheduler

keep = EulerDiscreteScheduler(rescale_betas_zero_snr=True).alphas_cumprod
sigmas = ((1 - keep) / keep) ** 0.5
print("alphas_cumprod", [f"{value:.4e}" for value in keep[-3:].tolist()])
print("sigmas", [f"{value:.3f}" for value in sigmas[-3:].tolist()])
assert keep[-1] == 2**-24 and keep[-1] > keep[-2] and sigmas[-1] == 4096 and sigmas[-2] > 15000, "this has changed"
PYTHON
