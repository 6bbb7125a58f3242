"""How good a model is: its variational bound, its likelihood, and what follows from one pass over the data."""

from ddpm_jax.evaluate.likelihood.optimal_grid import optimal_timesteps, step_costs
from ddpm_jax.evaluate.likelihood.probability_flow import bits_per_dim, dequantize, log_likelihood, path
from ddpm_jax.evaluate.likelihood.vlb import VlbTerms, vlb_terms

__all__ = [
    "VlbTerms",
    "bits_per_dim",
    "dequantize",
    "log_likelihood",
    "optimal_timesteps",
    "path",
    "step_costs",
    "vlb_terms",
]
