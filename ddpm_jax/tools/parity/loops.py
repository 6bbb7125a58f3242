"""Sampling loops of projects that nobody installs, recorded with their noise: ours beside every recorded step."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ddpm_jax import schedules
from ddpm_jax.samplers import (
    clipped,
    ddim,
    ddim_inverse,
    ddpm,
    denoiser,
    edm,
    edm_ode,
    grids,
    heun,
    known,
    mean_denoiser,
    plms,
    projected,
    repaint,
)
from ddpm_jax.samplers.configs.common import Preset
from ddpm_jax.samplers.denoise import Denoise
from ddpm_jax.samplers.grids import fastdpm, sigma_grids
from ddpm_jax.samplers.table import Table
from ddpm_jax.tools.parity import mixture
from ddpm_jax.tools.parity.mixture import Answer, Components
from ddpm_jax.tools.parity.ours import calls
from ddpm_jax.tools.parity.results import Difference, Result, along, compared, not_compared
from ddpm_jax.tools.parity.tables import load

GROUP = "samplers"
TOLERANCE = 1e-4
Arrays = Mapping[str, np.ndarray]
Clip = Callable[[Denoise], Denoise]
OUTPUTS: dict[str, Any] = {"EPSILON": "eps", "START_X": "x_0", "PREVIOUS_X": "x_prev"}
OPENAI_SCHEDULES = {
    "linear": schedules.linear_rescaled,
    "cosine": schedules.cosine,
    "squaredcos_cap_v2": schedules.cosine,
}


class Loop(NamedTuple):
    """What a recorded loop is here: a table, a network, the start, the noise, and x after every call.

    Where `where` is 0, x is not compared.
    """

    preset: Preset
    answer: Answer
    x_T: np.ndarray
    noise: np.ndarray
    expected: np.ndarray
    where: np.ndarray | float = 1.0


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

    if "inpaint" in name:
        return _inpainting(arrays, meta, grid, guided)
    table = plms(grid) if "plms" in name else ddim(grid, eta=meta["eta"])
    expected = arrays["samples"]
    if "plms" in name:  # the first of two calls in the first step is not recorded
        expected = np.concatenate([np.full_like(expected[:1], np.nan), expected])
    return Loop(_unclipped(table), guided, arrays["x_init"], arrays["noise"], expected)


def _inpainting(arrays: Arrays, meta: Any, grid: grids.Grid, answer: Answer) -> Loop:
    """Known pixels are put in before a call there, from a noise of their own; here they land with the step before.

    So x_T has them already, the noise of call k + 1 is that of our step k, and what is left at the known pixels between
    a step and the next call, and at the end, is not compared.
    """
    mask, image = arrays["mask"].astype(np.float64), arrays["x0"].astype(np.float64)
    for_known, for_rest = arrays["noise"][0::2], arrays["noise"][1::2]
    start = grid.levels[0]
    x_T = mask * (start.alpha * image + start.sigma * for_known[0]) + (1 - mask) * arrays["x_init"]
    noise = mask * np.append(for_known[1:], for_known[:1], axis=0) + (1 - mask) * for_rest
    wrap = lambda model_fn: known(denoiser(model_fn), jnp.asarray(image), jnp.asarray(mask))
    preset = Preset(repaint(grid, num_visits=1, eta=meta["eta"]), wrap)
    return Loop(preset, answer, x_T, noise, arrays["samples"], 1 - mask)


def _affine(arrays: Arrays) -> Answer:
    """M x + u t / 1000 + b per channel; the rows of a variance head are left out."""
    m, u, b = (arrays[part][: arrays["x_init"].shape[1]].astype(np.float64) for part in "Mub")
    column = lambda vector: vector.reshape(1, -1, 1, 1)
    return lambda x, time: np.einsum("oc,nchw->nohw", m, x) + column(u) * time / 1000 + column(b)


def openai_answer(arrays: Arrays, meta: Any) -> Answer:
    """The recorded network, told times of the schedule; a variance follows along the last axis."""
    rescaled = 1000 / meta["T"] if meta["rescale_timesteps"] else 1.0
    affine = "M" in arrays
    answer = _affine(arrays) if affine else _mixture(arrays, OUTPUTS[meta["model_mean_type"]], meta["time_scale"])

    def told(x: np.ndarray, time: float) -> np.ndarray:
        found = answer(x, time * rescaled)
        if not meta["model_var_type"].startswith("LEARNED"):
            return found
        head = meta["va"] * np.tanh(meta["vg"] * x) + meta["vt"] * (time * rescaled / 1000 - 0.5) + meta["vb"]
        return np.concatenate([found, head], axis=-1)

    return told


def _openai_table(meta: Any) -> Table:
    grid = grids.sections(OPENAI_SCHEDULES[meta["schedule"]](meta["T"]), meta["section_counts"])
    if "reverse" in meta["function"]:
        return ddim_inverse(grid, told="now")
    return ddpm(grid, variance=meta["model_var_type"].lower()) if meta["eta"] is None else ddim(grid, eta=meta["eta"])


def openai(
    name: str,
    arrays: Arrays,
    meta: Any,
    guide: Callable[[Denoise, Clip], Denoise] = lambda denoise, clip: clip(denoise),
) -> Loop:
    """A loop of OpenAI's code.

    Args:
      name: of the recording.
      arrays, meta: the recording.
      guide: a denoiser, and what clips one as the recorded loop did -> the one that samples.

    Raises:
      ValueError: a denoised_fn that is not known here.
    """
    del name
    learned: Any = meta["model_var_type"].lower() if meta["model_var_type"].startswith("LEARNED") else "fixed_large"
    if meta.get("denoised_fn") not in (None, "0.9*tanh(x)"):
        raise ValueError(f"unknown denoised_fn of the recording: {meta['denoised_fn']!r} (known: '0.9*tanh(x)')")

    def wrap(model_fn: Any) -> Any:
        if meta["model_mean_type"] == "PREVIOUS_X":  # the mean is the output itself: clipping leaves it
            return mean_denoiser(model_fn)
        denoise = denoiser(model_fn, OUTPUTS[meta["model_mean_type"]], variance=learned)
        if meta.get("denoised_fn") is not None:
            denoise = projected(denoise, lambda x_0: 0.9 * jnp.tanh(x_0))
        return guide(
            denoise, (lambda denoise: clipped(denoise, 1.0)) if meta["clip_denoised"] else lambda denoise: denoise
        )

    noise = arrays["noise"] if len(arrays["noise"]) else np.zeros_like(arrays["samples"])
    preset = Preset(_openai_table(meta), wrap)
    return Loop(preset, openai_answer(arrays, meta), arrays["x_init"], noise, arrays["samples"])


def _edm(name: str, arrays: Arrays, meta: Any) -> Loop:
    """x / alpha is recorded at every call, in float64."""
    at, options, sigmas = sigma_grids.continuous(), meta["kwargs"], arrays["call_sigma"]
    noise = np.zeros((len(sigmas), *arrays["latents"].shape))
    if "abl" in name:
        # Those of iDDPM as recorded: EDM's code has a sin^2 in float32, which leaves few digits where sigma is small.
        visited = {
            "vp": lambda count: sigma_grids.vp_sigmas(count),
            "ve": lambda count: sigma_grids.exponential_sigmas(count, 0.02, 100),
            "iddpm": lambda count: sigmas[::2],
        }[options["discretization"]](options["num_steps"])
        inner = None if options["solver"] == "euler" else options.get("alpha", 1.0)
        grid = sigma_grids.from_sigmas(at, [*visited, 0])
        table = edm_ode(grid, at, schedule=options["schedule"], scaling=options["scaling"], inner=inner)
    else:
        grid = sigma_grids.edm(options["num_steps"])
        limits = {ours: options.get(theirs) for ours, theirs in CHURN.items() if theirs in options}
        hat = sigma_grids.churned(grid, at, **limits) if limits else None
        table = heun(grid, hat=hat, s_noise=options.get("S_noise", 1.0))
        noise[1::2] = arrays["noise"][1:]  # drawn before step i there, in the row before it here
    rows, components = table.rows, Components(*(arrays[f"gmm_{part}"] for part in ("mu", "s", "w")))
    expected = np.concatenate([arrays["call_x"][1:], arrays["final"][None]])
    expected = expected * np.append(rows.alpha[1:], 1).reshape(-1, 1, 1, 1, 1)
    preset = Preset(table._replace(init=float(rows.sigma[0])), edm)
    return Loop(preset, mixture.preconditioned(0.5, 1, components), arrays["latents"], noise, expected)


CHURN = {"s_churn": "S_churn", "s_tmin": "S_min", "s_tmax": "S_max"}
READERS: dict[str, Callable[[str, Arrays, Any], Loop]] = {
    "fastdpm_": _fastdpm, "ddim_": _ddim_repository, "ldm_": _latent_diffusion, "loop_": openai,
    "edm_": _edm,
}  # fmt: skip
LOOPS = (
    *(f"other/fastdpm_{name}" for name in ("step_lin20_k0", "step_quad10_k05", "var_lin20_k0", "var_quad20_k1")),
    *(f"other/ddim_{name}" for name in ("uniform20_eta0", "uniform20_eta05", "uniform7_eta1", "quad10_eta0")),
    *(f"other/ddim_{name}" for name in ("ddpm_noisy20", "ddpm_noisy_quad10")),
    *(f"other/ldm_{name}" for name in ("ddim10_eta1_cfg", "ddim20_eta0", "ddim20_inpaint")),
    *(f"other/ldm_{name}" for name in ("plms10_cfg", "plms20")),
    *(f"other/edm_{name}" for name in ("heun18", "heun10_churn", "abl_euler_vp", "abl_heun_ve", "abl_heun_iddpm")),
    *(f"openai/loop_{name}" for name in ("a_p_linear10", "b_p_linear25_noclip", "c_p_cosine50_range")),
    *(f"openai/loop_{name}" for name in ("d_p_sections_x0", "e_p_cosine200_learned_rescaled", "i_ddim20_eta0")),
    *(f"openai/loop_{name}" for name in ("j_ddim20_eta05", "k_ddim25_eta1_range", "l_ddim50_x0_noclip")),
    *(f"openai/loop_{name}" for name in ("m_ddim10_rescaled", "t_glide_fast27_p", "u_glide_ddim10")),
    *(f"openai/loop_{name}" for name in ("f_p_affine_xprev", "g_p_affine_eps_clip", "h_p_full30_denoised_fn")),
    *(f"openai/loop_{name}" for name in ("n_reverse20", "o_reverse50_clip")),
)


def compare(golden: Path | None) -> Iterator[Result]:
    """A line for every recorded loop."""
    for name in LOOPS:
        if golden is None:
            yield not_compared(GROUP, f"recorded {name}", "", "recorded in PyTorch: needs --golden")
        else:
            yield compare_one(golden, name)


def compare_one(golden: Path, name: str) -> Result:
    """Ours beside x after every call of the recorded network."""
    arrays, meta = load(golden, name)
    stem = name.split("/")[1]
    read = next(reader for prefix, reader in READERS.items() if stem.startswith(prefix))
    return line(GROUP, f"recorded {stem}", arrays, meta, read(stem, arrays, meta))


def steps_of(loop: Loop) -> tuple[list[np.ndarray], list[int]]:
    """x after every call of our network, and those of them that were recorded."""
    found = calls(loop.preset, loop.answer, loop.x_T.astype(np.float64), loop.noise).xs[1:]
    seen = [step for step, expected in enumerate(loop.expected) if np.isfinite(expected).all()]
    return [x * loop.where for x in found], seen


def difference(loop: Loop) -> Difference:
    """Of our x from the recorded one, along the steps."""
    found, seen = steps_of(loop)
    return along([found[step] for step in seen], [loop.expected[step] * loop.where for step in seen], TOLERANCE)


def line(group: str, item: str, arrays: Arrays, meta: Any, loop: Loop) -> Result:
    """The result of a loop; what the recording says of rounding may explain a difference."""
    result = compared(group, item, str(meta["upstream"][0]["repo"]), difference(loop), TOLERANCE)
    if result.verdict == "same" or "sensitivity_1e6" not in arrays:
        return result
    found, seen = steps_of(loop)
    moves = arrays["sensitivity_1e6"]  # of every step, when the start and all answers change by 1e-6
    errors = np.array([np.abs(found[step] - loop.expected[step] * loop.where).max() for step in seen])
    if (errors > moves[seen]).any():
        return result
    most = float(max(moves[step] / np.abs(loop.expected[step]).max() for step in seen))
    note = f"rounding: the recorded loop moves by {most:.1e} when its network's answers change by 1e-6"
    return dataclasses.replace(result, verdict="explained", note=note)
