"""The DDPM → IDDPM → ADM → LDM line of diffusion models as pure functions on JAX and Flax."""

__version__ = "0.1.0"
