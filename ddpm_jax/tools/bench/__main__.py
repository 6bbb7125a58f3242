"""python -m ddpm_jax.tools.bench"""

from ddpm_jax.tools.bench.command import main

main()
