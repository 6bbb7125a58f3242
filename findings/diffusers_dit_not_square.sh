#!/usr/bin/env bash
# diffusers 0.42.1 (torch 2.13.0): DiTTransformer2DModel puts the patches of a picture that is not square together as a
# square one, without a word.
#
# The height and width of the grid of patches are both int(sqrt(number of patches)). A picture of 8 x 32 with patches of 2
# has 4 x 16 of them, and comes out as 16 x 16; 8 x 16 has 4 x 8, and the reshape fails.
# Seen: (16, 16) -> (16, 16), (8, 32) -> (16, 16), (8, 16) -> RuntimeError.
# Fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet "torch==2.13.0" "diffusers==0.42.1" numpy
cd "$folder" && "$folder/env/bin/python" - <<'PYTHON'
import torch
from diffusers import DiTTransformer2DModel

torch.manual_seed(0)
net = DiTTransformer2DModel(
    num_attention_heads=2, attention_head_dim=8, in_channels=3, out_channels=3, num_layers=1, sample_size=8, patch_size=2,
    num_embeds_ada_norm=10, norm_elementwise_affine=False, activation_fn="gelu-approximate",
).eval()
found = {}
for size in ((16, 16), (8, 32), (8, 16)):
    try:
        out = net(torch.randn(1, 3, *size), timestep=torch.tensor([5]), class_labels=torch.tensor([1])).sample
        found[size] = tuple(out.shape[-2:])
    except RuntimeError as error:
        found[size] = type(error).__name__
    print(size, "->", found[size])
assert found == {(16, 16): (16, 16), (8, 32): (16, 16), (8, 16): "RuntimeError"}, "this has changed"
PYTHON
