"""ddpm-jax plan"""

from ddpm_jax.cli.parsing import parse_run
from ddpm_jax.tools.plan import command


def plan(argv: list[str]) -> None:
    """Compile a configuration's programs for TPU slices and show what they need."""
    arguments, _ = parse_run(command.PlanArguments, argv, "plan")
    command.run(arguments, print)
