"""The command line: see USAGE."""

import os
import sys
from collections.abc import Callable, Sequence

import jax

from ddpm_jax.cli import (
    bench,
    convert,
    encode,
    evaluate,
    film,
    img2img,
    inpaint,
    interpolate,
    invert,
    learn_sampler,
    nll,
    parity,
    plan,
    sample,
    samplers,
    train,
    upscale,
)
from ddpm_jax.host import interrupts, processes, quiet
from ddpm_jax.names import choose
from ddpm_jax.runs import environment

USAGE = f"""usage: ddpm-jax COMMAND ...

  train [EXPERIMENT.py] [--workdir DIR] [--train.num-steps N ...]   train, or go on where a run stopped
  sample SOURCE [--sampler ddim] [--num-steps 50] [-n 64]           pictures from a trained run, a diffusers folder, ...
  img2img SOURCE PICTURES [--strength 0.5]                          pictures like given ones: a picture, or a folder
  inpaint SOURCE PICTURES --mask MASK.png                           what is white in the mask is painted anew
  invert SOURCE PICTURES [--num-steps 50]                           the noise that pictures come from
  interpolate SOURCE --between A.png B.png [--steps 8]              pictures between two, or between two seeds
  upscale SOURCE PICTURES                                           larger pictures, by a super-resolution network
  film SOURCE [--out FILE.gif]                                      what it takes the pictures for at each step
  encode SOURCE [DATA] [--out FOLDER]                               images as latents of an autoencoder, to train on
  convert SOURCE FOLDER                                             write it as a folder that diffusers loads
  evaluate SOURCE [--against DATA] [-n 10000] [--metrics fid kid]   how good the pictures are: distances, their protocol
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
    "evaluate": evaluate.evaluate,
    "encode": encode.encode,
    "convert": convert.convert,
    "nll": nll.negative_log_likelihood,
    "parity": parity.parity,
    "plan": plan.plan,
    "bench": bench.bench,
    "learn-sampler": learn_sampler.learn_sampler,
    "samplers": samplers.list_samplers,
    "img2img": img2img.img2img,
    "inpaint": inpaint.inpaint,
    "invert": invert.invert,
    "interpolate": interpolate.interpolate,
    "upscale": upscale.upscale,
    "film": film.film,
}
RESUMING = ("train", "sample", "evaluate", "nll", "img2img", "inpaint", "interpolate", "upscale")
HELP = frozenset({"-h", "--help"})
OF_USERS = (ValueError, OSError, ImportError, FloatingPointError)


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command. A user's error ends in one line on stderr and exit status 2; Ctrl-C in one line and 130."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in HELP:
        print(USAGE)
        return
    if not os.environ.get("DDPM_JAX_TRACEBACK"):
        quiet.threads()
    try:
        with interrupts.kept("ddpm-jax: stopped at once"):
            _run(arguments)
    finally:
        if argv is None:  # this is the program
            interrupts.end_silently()


def _run(arguments: list[str]) -> None:
    try:
        command = choose("command", arguments[0], COMMANDS)
        if not HELP.intersection(arguments):
            environment.check()
        command(arguments[1:])
    except KeyboardInterrupt:
        goes_on = "; the same command goes on from what it has written" if arguments[0] in RESUMING else ""
        processes.leave(interrupts.STATUS, f"stopped{goes_on}")
    except Exception as error:
        if isinstance(error, OF_USERS) and not os.environ.get("DDPM_JAX_TRACEBACK"):
            processes.leave(2, " ".join(str(error).split()))
        if processes.is_one_of_several():
            processes.leave_after(error)
        if isinstance(error, jax.errors.JaxRuntimeError) and not os.environ.get("DDPM_JAX_TRACEBACK"):
            first_line = str(error).partition("\n")[0]  # most often of memory
            processes.leave(2, f"JAX cannot compute this here, where fewer images at once may help: {first_line}")
        raise
