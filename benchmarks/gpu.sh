#!/usr/bin/env bash
# Everything that `ddpm-jax bench` and `python -m benchmarks` measure, on one GPU, in under 9 minutes, from a plain checkout without network.
#
# Run:       bash benchmarks/gpu.sh [FOLDER]
# Needs:     an NVIDIA GPU; Python with jax (CUDA), flax, optax, orbax-checkpoint, numpy and torch (CUDA). diffusers,
#            matplotlib, tenacity and pillow if they are there: what needs them is otherwise listed as not measured
# Expect:    sampling at least 1.5 x torch.compile in bfloat16 at batch 1 and 64, training 1.3 x, half the speed of the
#            matrix product at the best batch
# Measured:  not run yet
set -u
cd "$(dirname "$0")/.."
out=${1:-bench_gpu}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} XLA_PYTHON_CLIENT_PREALLOCATE=false PYTHONUNBUFFERED=1
python=$(command -v python3 || command -v python)
begin=$SECONDS

# bench SECONDS MODULE ARGUMENT...: one call, ended after so long; what it was to measure and did not is said.
bench() {
  local most=$1 module=$2 left=$((530 - (SECONDS - begin)))
  shift 2
  [ "$left" -lt "$most" ] && most=$left
  if [ "$most" -lt 5 ]; then echo "not measured, no time left: bench $*"; return; fi
  timeout "$most" "$python" -m "$module" "$@" --seconds 6 --out "$out" || echo "not measured, ended after $most s: bench $*"
}

bench 130 ddpm_jax.tools.bench sampling --dtype bfloat16 --batch 1 64 --num-steps 10 --rounds 15
bench 110 ddpm_jax.tools.bench network --dtype bfloat16 --batch 64 256 --rounds 15
bench 100 benchmarks training --dtype bfloat16 --batch 128 --rounds 15
bench 50 benchmarks cold --dtype bfloat16 --batch 1 --num-steps 10 --rounds 3
bench 40 benchmarks compilations --dtype bfloat16 --batch 1
bench 40 ddpm_jax.tools.bench loop --model digits --batch 64 --rounds 5
bench 40 benchmarks growth --batch 16 --rounds 5
bench 20 ddpm_jax.tools.bench sampling --dtype float32 --batch 16 --num-steps 10 --rounds 15 --only ddpm_jax eager channels
"$python" -m ddpm_jax.tools.bench page --out "$out" && echo "$((SECONDS - begin)) s in all"
