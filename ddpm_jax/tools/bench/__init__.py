"""What the package takes beside PyTorch and beside itself: `ddpm-jax bench`, or `python -m ddpm_jax.tools.bench`.

interleave    times of several jobs, one run of each a round; medians, spreads, ratios
blocks        what a measurement is made of: comparisons, facts, curves; as JSON
machine       what it was measured on
page          all measurements of a folder as one HTML page
command       the command line, without tyro: the only command that must run where only JAX and PyTorch are
networks      ours, by name; flops: what they multiply
theirs        the same network in PyTorch; torch_unet, torch_forms: the parts that need no JAX
the others    one part of the command each: the function `measure(settings, say) -> blocks`; more parts, whose figures
              are in docs, are in benchmarks/ of the repository
"""
