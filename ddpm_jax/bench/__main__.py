"""python -m ddpm_jax.bench"""

from ddpm_jax.bench.command import main

main()
