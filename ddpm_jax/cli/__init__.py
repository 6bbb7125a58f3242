"""The command line, one file a command, and the only part that prints."""

from ddpm_jax.host import interrupts

with interrupts.ending_silently():
    from ddpm_jax.cli.entry import COMMANDS, main
    from ddpm_jax.cli.parsing import load_experiment

__all__ = ["COMMANDS", "load_experiment", "main"]
