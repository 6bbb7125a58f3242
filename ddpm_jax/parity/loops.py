"""Sampling loops of projects that nobody installs, recorded with their noise: ours beside every recorded step."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax import schedules
from ddpm_jax.parity import mixture
from ddpm_jax.parity.mixture import Answer, Components
from ddpm_jax.parity.ours import calls
from ddpm_jax.parity.results import Result, along, compared, not_compared
from ddpm_jax.parity.tables import load
from ddpm_jax.samplers import clipped, ddim, ddpm, denoiser, fastdpm, grids, plms
from ddpm_jax.samplers.configs.common import Preset
from ddpm_jax.samplers.table import Table

GROUP = "samplers"
TOLERANCE = 1e-4
Arrays = Mapping[str, np.ndarray]


class Loop(NamedTuple):
    """What a recorded loop is here: a table, a network, the start, the noise, and x after every call."""

    preset: Preset
    answer: Answer
    x_T: np.ndarray
    noise: np.ndarray
    expected: np.ndarray


def _mixture(arrays: Arrays, output: str = "eps", time_scale: float = 1.0, kind: str = "gmm") -> Answer:
    components = Components(*(arrays[f"{kind}_{part}"].astype(np.float64) for part in ("mu", "s", "w")))
    answer = mixture.at_table(arrays["model_alphas_cumprod"], output, components)
    return lambda x, time: answer(x, time * time_scale)


def _unclipped(table: Table) -> Preset:
    return Preset(table, denoiser)


def _ddim_repository(name: str, arrays: Arrays, meta: Any) -> Loop:
    schedule = schedules.linear(meta["T"], beta_start=meta["beta_start"], beta_end=meta["beta_end"])
    grid = {"uniform": grids.uniform, "quad": grids.quad}[meta["skip_type"]](schedule, meta["timesteps"])
    if "noisy" in name:  # its DDPM has fixed_large variance and clips
        preset = Preset(ddpm(grid), partial(denoiser, clip=1.0))
    else:
        preset = _unclipped(ddim(grid, eta=meta["eta"]))
    return Loop(preset, _mixture(arrays), arrays["x_init"], arrays["noise"], arrays["samples"])


def _fastdpm(name: str, arrays: Arrays, meta: Any) -> Loop:
    schedule = schedules.linear(meta["T"], beta_start=meta["beta_0"], beta_end=meta["beta_T"])
    if "step" in name:
        grid = fastdpm.step_grid(schedule, meta["S"], meta["schedule"])
    else:
        grid = fastdpm.var_grid(schedule, meta["S"], meta["schedule"], search="bounded")
    expected = np.concatenate([arrays["states"][1:], arrays["final"][None]])
    noise = arrays["noise"]
    return Loop(_unclipped(ddim(grid, eta=meta["kappa"])), _mixture(arrays), noise[0], noise[1:], expected)


def _latent_diffusion(name: str, arrays: Arrays, meta: Any) -> Loop:
    """t + 1 is told, and the last step goes to the level of t = 0."""
    schedule = schedules.quad(meta["T"], beta_start=8.5e-4, beta_end=1.2e-2)
    grid = grids.leading(schedule, meta["S"], offset=1, last="first")
    conditional, unconditional = (_mixture(arrays, kind=f"gmm{which}") for which in "cu")
    scale = meta["guidance_scale"]

    def guided(x: np.ndarray, time: float) -> np.ndarray:
        free = unconditional(x, time)
        return free + scale * (conditional(x, time) - free)

    table = plms(grid) if "plms" in name else ddim(grid, eta=meta["eta"])
    expected = arrays["samples"]
    if "plms" in name:  # the first of two calls in the first step is not recorded
        expected = np.concatenate([np.full_like(expected[:1], np.nan), expected])
    return Loop(_unclipped(table), guided, arrays["x_init"], arrays["noise"], expected)


def _openai(name: str, arrays: Arrays, meta: Any) -> Loop:
    named = {"linear": schedules.linear_rescaled, "cosine": schedules.cosine, "squaredcos_cap_v2": schedules.cosine}
    grid = grids.sections(named[meta["schedule"]](meta["T"]), meta["section_counts"])
    law = meta["model_var_type"].lower()
    table = ddpm(grid, variance=law) if meta["eta"] is None else ddim(grid, eta=meta["eta"])
    output: Any = {"EPSILON": "eps", "START_X": "x_0"}[meta["model_mean_type"]]
    rescaled = 1000 / meta["T"] if meta["rescale_timesteps"] else 1.0
    answer = _mixture(arrays, output, meta["time_scale"])
    learned: Any = law if law.startswith("learned") else "fixed"

    def told(x: np.ndarray, time: float) -> np.ndarray:
        found = answer(x, time * rescaled)
        if learned == "fixed":
            return found
        head = meta["va"] * np.tanh(meta["vg"] * x) + meta["vt"] * (time * rescaled / 1000 - 0.5) + meta["vb"]
        return np.concatenate([found, head], axis=-1)

    def wrap(model_fn: Any) -> Any:
        denoise = denoiser(model_fn, output, variance=learned)
        return clipped(denoise, 1.0) if meta["clip_denoised"] else denoise

    noise = arrays["noise"] if len(arrays["noise"]) else np.zeros_like(arrays["samples"])
    return Loop(Preset(table, wrap), told, arrays["x_init"], noise, arrays["samples"])


READERS: dict[str, Callable[[str, Arrays, Any], Loop]] = {
    "fastdpm_": _fastdpm, "ddim_": _ddim_repository, "ldm_": _latent_diffusion, "loop_": _openai,
}  # fmt: skip
LOOPS = (
    *(f"other/fastdpm_{name}" for name in ("step_lin20_k0", "step_quad10_k05", "var_lin20_k0", "var_quad20_k1")),
    *(f"other/ddim_{name}" for name in ("uniform20_eta0", "uniform20_eta05", "uniform7_eta1", "quad10_eta0")),
    *(f"other/ddim_{name}" for name in ("ddpm_noisy20", "ddpm_noisy_quad10")),
    *(f"other/ldm_{name}" for name in ("ddim10_eta1_cfg", "ddim20_eta0", "plms10_cfg", "plms20")),
    *(f"openai/loop_{name}" for name in ("a_p_linear10", "b_p_linear25_noclip", "c_p_cosine50_range")),
    *(f"openai/loop_{name}" for name in ("d_p_sections_x0", "e_p_cosine200_learned_rescaled", "i_ddim20_eta0")),
    *(f"openai/loop_{name}" for name in ("j_ddim20_eta05", "k_ddim25_eta1_range", "l_ddim50_x0_noclip")),
    *(f"openai/loop_{name}" for name in ("m_ddim10_rescaled", "t_glide_fast27_p", "u_glide_ddim10")),
)
ELSEWHERE = {
    "recorded OpenAI loops of means, denoised_fn, cond_fn, reversed (9)": "tests/samplers/test_openai_loops.py",
    "recorded inpainting of latent-diffusion (1)": "tests/samplers/test_other_loops.py",
    "recorded samplers of EDM (5)": "tests/samplers/test_sigma.py",
}


def compare(golden: Path | None) -> Iterator[Result]:
    """A line for every recorded loop."""
    for name in LOOPS:
        if golden is None:
            yield not_compared(GROUP, f"recorded {name}", "", "recorded in PyTorch: needs --golden")
        else:
            yield compare_one(golden, name)
    for item, place in ELSEWHERE.items():
        yield not_compared(GROUP, item, "", f"not by this command; against the recordings in {place}")


def compare_one(golden: Path, name: str) -> Result:
    """Ours beside x after every call of the recorded network."""
    arrays, meta = load(golden, name)
    stem = name.split("/")[1]
    read = next(reader for prefix, reader in READERS.items() if stem.startswith(prefix))
    loop = read(stem, arrays, meta)
    found = calls(loop.preset, loop.answer, loop.x_T.astype(np.float64), loop.noise).xs[1:]
    seen = [step for step, expected in enumerate(loop.expected) if np.isfinite(expected).all()]
    difference = along([found[step] for step in seen], [loop.expected[step] for step in seen], TOLERANCE)
    result = compared(GROUP, f"recorded {stem}", str(meta["upstream"][0]["repo"]), difference, TOLERANCE)
    if result.verdict == "same" or "sensitivity_1e6" not in arrays:
        return result
    moves = arrays["sensitivity_1e6"]  # of every step, when the start and all answers change by 1e-6
    errors = np.array([np.abs(found[step] - loop.expected[step]).max() for step in seen])
    if (errors > moves[seen]).any():
        return result
    most = float(max(moves[step] / np.abs(loop.expected[step]).max() for step in seen))
    note = f"rounding: the recorded loop moves by {most:.1e} when its network's answers change by 1e-6"
    return dataclasses.replace(result, verdict="explained", note=note)
