#!/usr/bin/env bash
# prdc 0.2 (numpy 2.4.6, scikit-learn 1.8.0): equal sets in which every image occurs nearest_k + 1 times have precision,
# recall, density and coverage 0.
#
# An image counts as covered where its distance is strictly less than the radius of the other set's image, the distance
# to its nearest_k-th neighbour; of images that occur nearest_k + 1 times that radius is 0, and nothing is less. Repeated
# images are usual: black frames, icons, class-balanced resampling. torch-fidelity and ADM's evaluator take "at most".
# Seen: twice each: precision, recall, coverage 1, density 0.8; six times each, nearest_k 5: all four 0.
# Fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet "prdc==0.2" "numpy==2.4.6" "scikit-learn==1.8.0"
cd "$folder" && "$folder/env/bin/python" - <<'PYTHON'
import numpy as np
from prdc import compute_prdc

features = np.random.RandomState(0).randn(50, 8)
for times in (2, 6):
    found = compute_prdc(np.repeat(features, times, 0), np.repeat(features, times, 0), nearest_k=5)
    print(times, {name: float(value) for name, value in found.items()})
assert all(value == 0 for value in found.values()), "this has changed"
PYTHON
