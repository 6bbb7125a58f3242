"""The command line: see USAGE."""

import os
import sys
from collections.abc import Callable, Sequence

from ddpm_jax.cli import bench, convert, learn_sampler, nll, parity, plan, sample, samplers, train
from ddpm_jax.host import processes, quiet
from ddpm_jax.names import choose

USAGE = f"""usage: ddpm-jax COMMAND ...

  train [EXPERIMENT.py] [--workdir DIR] [--train.num-steps N ...]   train, or go on where a run stopped
  sample SOURCE [--sampler ddim] [--num-steps 50] [-n 64]           pictures from a trained run, a diffusers folder, ...
  convert SOURCE FOLDER                                             write it as a folder that diffusers loads
  nll SOURCE [--split test] [-n 1000] [--num-steps 100]             bits/dim: the variational bound, term by term
  plan [EXPERIMENT.py] --topology v5e:4x8 [--json FILE]             memory and time on TPUs, without a TPU
  parity [--golden FOLDER] [--json FILE] [--html FILE]              beside the installed PyTorch and diffusers
  bench [PART ...] [--model cifar10] [--out FOLDER]                 times beside PyTorch, error against steps; a report
  learn-sampler SOURCE [--num-steps 6]                              fit a sampler of few calls to a trained network
{samplers.USAGE}

ddpm-jax COMMAND --help lists every option."""

COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "train": train.train,
    "sample": sample.sample,
    "convert": convert.convert,
    "nll": nll.negative_log_likelihood,
    "parity": parity.parity,
    "plan": plan.plan,
    "bench": bench.bench,
    "learn-sampler": learn_sampler.learn_sampler,
    "samplers": samplers.list_samplers,
}
RESUMING = ("train", "nll")


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command. A user's error ends in one line on stderr and exit status 2."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return
    if not os.environ.get("DDPM_JAX_TRACEBACK"):
        quiet.threads()
    try:
        choose("command", arguments[0], COMMANDS)(arguments[1:])
    except KeyboardInterrupt:
        goes_on = "; the same command goes on from what it has written" if arguments[0] in RESUMING else ""
        print(f"ddpm-jax: stopped{goes_on}", file=sys.stderr)
        processes.leave(1)
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        if os.environ.get("DDPM_JAX_TRACEBACK"):
            raise
        print(f"ddpm-jax: {' '.join(str(error).split())}", file=sys.stderr)
        processes.leave(2)
