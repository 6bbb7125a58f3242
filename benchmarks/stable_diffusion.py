"""A pipeline of Stable Diffusion 1's size with random weights, beside diffusers: opening its folder, and drawing.

Run:       python -m benchmarks.stable_diffusion FOLDER [--rounds 3] [--forms load draw]
           The folder is made, 4.3 GB, unless it is there. diffusers and transformers must be installed.
Prints:    seconds and the peak of the process's memory, each form in a process of its own, all forms in each round.
           load: U-Net, autoencoder and text encoder as arrays in memory. draw: one picture of 512 x 512, three steps of
           DDIM, guidance 7.5, float32, from the start of the process, and the three steps and decoding by themselves,
           once compiled.
Measured:  docs/latents.md
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import interop, keys, pictures, schedules
from ddpm_jax.guided import Guidance
from ddpm_jax.interop.diffusers.save import save_diffusers
from ddpm_jax.interop.tokenizers import END, START, ClipTokenizer
from ddpm_jax.models import AutoencoderKL, CLIPText, UNet
from ddpm_jax.reading import Reading
from ddpm_jax.trained import FirstStage, TextEncoder, Trained

STEPS, SCALE, PROMPT = 3, 7.5, "a a"
FORMS = {
    "load": ("ddpm_jax", "diffusers"),
    "draw": ("ddpm_jax", "diffusers eager", "diffusers channels-last", "diffusers compiled"),
}
SCHEDULER = {
    **{"_class_name": "DDIMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"},
    **{"num_train_timesteps": 1000, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1},
}


def random_parameters(model: Any, *inputs: Any, **more: Any) -> Any:
    """Normal, of the size of a first draw, so that numbers stay finite through the network."""
    shapes = jax.eval_shape(lambda: model.init(keys.make(0), *inputs, **more))["params"]
    random = np.random.default_rng(0)

    def draw(leaf: Any) -> np.ndarray:
        fan_in = max(1, int(np.prod(leaf.shape[:-1])))
        return random.standard_normal(leaf.shape, np.float32) * np.float32(0.5 / fan_in**0.5)

    return jax.tree.map(draw, shapes)


def make(folder: Path) -> None:
    """A folder of diffusers with networks of Stable Diffusion 1's sizes."""
    vocabulary = [f"{i}</w>" for i in range(49406 - 2)] + ["a", "a</w>", START, END]
    tokenizer = folder.parent / f"{folder.name}_tokenizer"
    tokenizer.mkdir(parents=True, exist_ok=True)
    (tokenizer / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    (tokenizer / "merges.txt").write_text("#version: 0.2\n")
    (tokenizer / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 77}))
    unet = UNet(
        channels=320, channel_multipliers=(1, 2, 4, 4), num_res_blocks=2, attention_resolutions=None,
        attention_factors=(1, 2, 4), transformer_depth=1, num_heads=8, num_head_channels=None, out_channels=4,
    )  # fmt: skip
    x, t, context = jnp.zeros((1, 64, 64, 4)), jnp.zeros(1), jnp.zeros((1, 77, 768))
    stage = AutoencoderKL()
    trained = Trained(
        origin="random",
        config={},
        model=unet,
        params=random_parameters(unet, x, t, context=context),
        schedule=schedules.from_betas(np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2),
        reading=Reading("eps", "fixed_small"),
        image_shape=(64, 64, 4),
        scheduler_config=SCHEDULER,
        first_stage=FirstStage(stage, random_parameters(stage, jnp.zeros((1, 64, 64, 3))), 0.18215),
        text=TextEncoder(
            CLIPText(), random_parameters(CLIPText(), jnp.zeros((1, 77), jnp.int32)), ClipTokenizer(tokenizer, 77)
        ),
    )
    save_diffusers(folder, trained)


def ours(folder: Path, form: str, what: str) -> dict[str, float]:
    began = time.perf_counter()
    trained = interop.load(folder)
    if what == "load":
        return {"seconds": time.perf_counter() - began}
    chosen = Guidance(SCALE)
    told = pictures.prompts(trained, (PROMPT,), guided=chosen)
    preset = pictures.preset(trained, None, STEPS, None, None)
    preset = preset._replace(table=chosen.on(preset.table, trained.schedule.num_timesteps))
    program = pictures.Program(trained, preset, told, 1, 0, jax.devices()[:1])
    params = pictures.weights_of(trained, told)
    jax.block_until_ready(next(program.batches(params, 0, 1)))
    first = time.perf_counter() - began
    begins = time.perf_counter()
    jax.block_until_ready(next(program.batches(params, 0, 1)))
    return {"first picture": first, "another": time.perf_counter() - begins}


def theirs(folder: Path, form: str, what: str) -> dict[str, float]:
    import torch  # type: ignore[reportMissingImports]
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel  # type: ignore[reportMissingImports]
    from transformers import CLIPTextModel  # type: ignore[reportMissingImports]

    began = time.perf_counter()
    if what == "load":
        kept = [UNet2DConditionModel.from_pretrained(folder / "unet"), AutoencoderKL.from_pretrained(folder / "vae"),
                CLIPTextModel.from_pretrained(folder / "text_encoder")]  # fmt: skip
        # Mapped weights that nobody has read are no weights in memory: one number of each page.
        total = sum(float(p.flatten()[::1024].sum()) for model in kept for p in model.parameters())
        return {"seconds": time.perf_counter() - began + 0 * total}
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    if form == "diffusers channels-last":
        pipe.unet.to(memory_format=torch.channels_last)
        pipe.vae.to(memory_format=torch.channels_last)
    if form == "diffusers compiled":
        pipe.unet = torch.compile(pipe.unet)
        pipe.vae.decode = torch.compile(pipe.vae.decode)
    draw = lambda: pipe(PROMPT, num_inference_steps=STEPS, guidance_scale=SCALE, output_type="np")
    draw()
    first = time.perf_counter() - began
    begins = time.perf_counter()
    draw()
    return {"first picture": first, "another": time.perf_counter() - begins}


def one(folder: Path, form: str, what: str) -> None:
    """In this process: its numbers as a line of JSON."""
    found = (ours if form == "ddpm_jax" else theirs)(folder, form, what)
    found["GiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps(found))


def main(folder: Path, rounds: int, parts: list[str]) -> None:
    if not folder.exists():
        make(folder)
    size = sum(path.stat().st_size for path in folder.rglob("*.safetensors")) / 2**30
    print(f"{folder.name}: {size:.2f} GiB of weights")
    for what in parts:
        found: dict[str, list[dict[str, float]]] = {form: [] for form in FORMS[what]}
        for _ in range(rounds):
            for form, numbers in found.items():
                words = [sys.executable, "-m", "benchmarks.stable_diffusion", str(folder), "--one", form, what]
                done = subprocess.run(words, capture_output=True, text=True, check=True)
                numbers.append(json.loads(done.stdout.splitlines()[-1]))
                print(what, form, numbers[-1], flush=True)
        for key in found["ddpm_jax"][0]:
            middle = {form: median(each[key] for each in numbers) for form, numbers in found.items()}
            best = min(value for form, value in middle.items() if form != "ddpm_jax")
            print(f"{what}, {key}: {middle}; ddpm_jax {middle['ddpm_jax'] / best:.2f} times the best of the others")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--one", nargs=2, metavar=("FORM", "PART"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        one(given.folder, *given.one)
    else:
        main(given.folder, given.rounds, given.forms)
