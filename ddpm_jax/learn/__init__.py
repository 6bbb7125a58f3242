"""Samplers learned for a network: the numbers and times of a table, fitted to many steps of the same network's flow.

family   which tables there are, as a differentiable function of the numbers that are learned
start    the best hand-made table, to begin with
fit      gradient descent through the sampler
files    a learned table as JSON
command  `ddpm-jax learn-sampler`
"""
