"""ddpm-jax bench"""

from ddpm_jax.tools.bench import command


def bench(argv: list[str]) -> None:
    """Measure times and errors, and write a report."""
    command.run(argv, print)
