"""python -m benchmarks [PART ...], from a checkout: measurements whose figures are in docs/bench.md and cpu_speed.md.

The options, the files and the page are those of `ddpm-jax bench`. conv.py, features.py, memory.py and gpu.sh are
scripts of their own.
"""

from ddpm_jax.tools.bench.command import Part, main

PARTS = {
    "training": Part(
        "the whole training step beside PyTorch's; the data pipeline", "benchmarks.training", repeated=True
    ),
    "cold": Part("from the start of a process to the first image", "benchmarks.cold"),
    "compilations": Part("how often 20 samplers and numbers of steps are compiled", "benchmarks.compilations"),
    "growth": Part("time and memory against steps, batch, image size, devices", "benchmarks.growth"),
}

if __name__ == "__main__":
    main(PARTS, "python -m benchmarks")
