"""ddpm-jax plan"""

from pathlib import Path

from ddpm_jax.cli.parsing import load_experiment, parse
from ddpm_jax.config.run import Config
from ddpm_jax.tools.plan import command


def plan(argv: list[str]) -> None:
    """Compile a configuration's programs for TPU slices and show what they need."""
    default = Config()
    if argv and not argv[0].startswith("-"):
        default, argv = load_experiment(Path(argv[0])), argv[1:]
    command.run(parse(command.PlanArguments, argv, "plan", command.PlanArguments(default)), print)
