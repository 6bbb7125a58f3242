"""ddpm-jax parity"""

from ddpm_jax.cli.parsing import parse
from ddpm_jax.tools.parity import command


def parity(argv: list[str]) -> None:
    """Compare with the installed PyTorch and diffusers, and with recordings."""
    command.run(parse(command.ParityArguments, argv, "parity"), print)
