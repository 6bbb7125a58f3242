"""What --golden holds and no other group reads, each with the place that does: nothing is skipped silently."""

from collections.abc import Iterator
from pathlib import Path

from ddpm_jax.tools.parity.results import Result, not_compared

GROUP = "recordings"
# Beginning of the file's name in the folder: why not here.
ELSEWHERE = {
    "diffusers/": "steps, grids and tables of classes that are installed and run above; against the recordings in "
    "tests/samplers, tests/test_process.py and tests/test_schedules.py",
    "first_stage/": "training of autoencoders, which this package does not have yet",
    "guidance/": "guidance by texts and of several kinds at once, and the training of classifiers, which this package "
    "does not have yet; classifier-free and classifier guidance above",
    "metrics/": "metrics of images, which this package leaves to other packages",
    "tokenizers/": "tokens of texts, which this package does not make yet",
    "uses/": "pipelines with texts, and in-painting, which this package does not have yet",
    "fid/": "features of images, which this package leaves to other packages",
    "networks/time_embeddings": "not by this command; against the recording in tests/models/test_embeddings.py",
    "openai/betas": "its betas in schedules; what follows from them against the recording in tests/test_schedules.py",
    "openai/respaced_tables": "not by this command; against the recording in tests/test_schedules.py",
    "openai/space_timesteps": "not by this command; against the recording in tests/samplers/test_grids.py",
    "other/ddim_betas": "not by this command; against the recording in tests/test_schedules.py",
    "other/edm_preconditioning": "not by this command; against the recording in tests/special/test_edm.py",
    "other/ldm_schedules": "its betas in schedules; its steps against the recording in tests/samplers/test_grids.py",
    "other/flax_": "not by this command; against the recordings in tests/interop/test_flax_weights.py and "
    "tests/samplers/test_flax_classes.py",
    "other/fastdpm_schedules": "the levels of loops that are compared above, step by step",
}


def compare(golden: Path | None) -> Iterator[Result]:
    """A line for every one of them, and how many files it stands for."""
    for name, reason in ELSEWHERE.items():
        files = "" if golden is None else f" ({len([*golden.glob(f'{name}*')])})"
        yield not_compared(GROUP, f"recorded {name}{files}", "", reason)
