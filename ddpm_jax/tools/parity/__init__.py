"""What `ddpm-jax parity` compares: this package beside the installed PyTorch implementations, item by item."""
