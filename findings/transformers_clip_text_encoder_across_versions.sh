#!/usr/bin/env bash
# transformers 4.57.6 reads a CLIPTextModel that transformers 5.24.0 has written (save_pretrained, torch 2.13.0) as a
# network of random weights: no error, a line in the log.
#
# 5.24.0 names tensors "embeddings...", "encoder...", "final_layer_norm..."; 4.57.6 wants them under "text_model." and
# takes all of them for missing. So the text_encoder/ of a Stable Diffusion folder that was saved again with 5 follows no
# prompt in 4. The other way round works: 5.24.0 reads names with "text_model.".
# Seen: written by 5, read by 4: outputs differ by 3.58; written by 4, read by 5: by 0.
# Fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for version in 4.57.6 5.24.0; do
  python3 -m venv "$folder/$version"
  "$folder/$version/bin/pip" install --quiet "torch==2.13.0" "transformers==$version"
done
cat >"$folder/encoder.py" <<'PYTHON'
import sys

import numpy as np
import torch
from transformers import CLIPTextConfig, CLIPTextModel

what, place, output = sys.argv[1:]
if what == "write":
    torch.manual_seed(0)
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = CLIPTextModel(CLIPTextConfig(**sizes, max_position_embeddings=8, bos_token_id=0, eos_token_id=1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
    model.save_pretrained(place)
else:
    model = CLIPTextModel.from_pretrained(place)
with torch.no_grad():
    np.save(output, model.eval()(torch.tensor([[0, 5, 9, 1]])).last_hidden_state.numpy())
PYTHON
cd "$folder"
compare() {  # written by $1, read by $2
  "$1/bin/python" encoder.py write "by_$1" "of_$1.npy"
  "$2/bin/python" encoder.py read "by_$1" "of_$1_by_$2.npy"
}
compare 5.24.0 4.57.6
compare 4.57.6 5.24.0
5.24.0/bin/python - <<'PYTHON'
import numpy as np

off = lambda a, b: float(np.abs(np.load(a) - np.load(b)).max())
lost, kept = off("of_5.24.0.npy", "of_5.24.0_by_4.57.6.npy"), off("of_4.57.6.npy", "of_4.57.6_by_5.24.0.npy")
print(f"written by 5, read by 4: off by {lost:.3g}; written by 4, read by 5: off by {kept:.3g}")
assert lost > 1 and kept < 1e-5, "this has changed"
PYTHON
