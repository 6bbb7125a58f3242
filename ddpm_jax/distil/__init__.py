"""Samplers learned for a network: the numbers and times of a table, fitted to many steps of the same network's flow.

family      which tables there are, as a differentiable function of the numbers that are learned
start       the hand-made tables, nearest to the teacher first
regression  a table of given times in closed form, and times searched by it: where a fit begins
fit         Gauss-Newton through the sampler
files       a learned table as JSON
command     `ddpm-jax learn-sampler`
"""
