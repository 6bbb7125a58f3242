#!/usr/bin/env bash
# diffusers 0.42.1 (torch 2.13.0): the scheduler_config.json that save_pretrained writes of DPMSolverMultistepScheduler with
# its defaults holds -Infinity, which JSON has no word for: a strict parser refuses the file.
#
# lambda_min_clipped has the default -inf, and Python's json.dumps writes it as -Infinity unless allow_nan=False.
# Seen: "no digit after minus sign" for DPMSolverMultistepScheduler, its inverse, DPMSolverSinglestepScheduler and
# SASolverScheduler.
# Fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet "torch==2.13.0" "diffusers==0.42.1" "orjson==3.11.4" numpy
cd "$folder" && "$folder/env/bin/python" - <<'PYTHON'
from pathlib import Path

import diffusers
import orjson

strict = {}
for name in sorted(dir(diffusers)):
    if not name.endswith("Scheduler") or name.startswith("Flax"):
        continue
    try:
        scheduler = getattr(diffusers, name)()
        scheduler.save_pretrained(name)
    except Exception as error:  # classes that cannot be made without arguments, or need other packages
        print(f"{name}: not made ({type(error).__name__})")
        continue
    text = Path(name, "scheduler_config.json").read_bytes()
    try:
        orjson.loads(text)
        strict[name] = True
    except orjson.JSONDecodeError as error:
        strict[name] = False
        print(f"{name}: {error}")
refused = {name for name, fine in strict.items() if not fine}
assert {"DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "SASolverScheduler"} <= refused, "this has changed"
assert strict["DDIMScheduler"], "this has changed"
PYTHON
