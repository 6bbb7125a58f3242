"""A first stage: an autoencoder, whose latents a diffusion model can be trained on, and its adversary.

    autoencoder     nll(x, x^) + w penalty(z) + active weight lambda (-E D(x^))
    discriminator   active (L(D(x), D(x^)) + gamma R1)

lambda is the adaptive weight of the step's own means, and active is 0 before adversary.start and 1 from then on. Both
sides take the step from the same reconstructions and at once; in latent-diffusion the discriminator's follows, on new
ones. Its discriminator has batch norms, which would make the gradient of an example depend on the others of its device;
here the norms are of one image.

Source: Esser et al. 2020 (arXiv:2012.09841), section 3.1; Rombach et al. 2021 (arXiv:2112.10752), appendix G.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from ddpm_jax import build, first_stage, images
from ddpm_jax.build import Forward
from ddpm_jax.config import defaults
from ddpm_jax.config.networks import VQConfig
from ddpm_jax.config.run import Config
from ddpm_jax.data import Source
from ddpm_jax.host.storage import Say
from ddpm_jax.models import quantizers
from ddpm_jax.train.state import Params, TrainState, make_optimizer, optimized
from ddpm_jax.train.task import Means, Start
from ddpm_jax.train.tasks import perceptual
from ddpm_jax.train.tasks.judged import Judged
from ddpm_jax.train.tasks.perceptual import Distance

AUTOENCODER, DISCRIMINATOR, GENERATOR = "autoencoder", "discriminator", "generator"


class Kept(NamedTuple):
    """Of the step before, the adaptive weight and the perplexity of its codes; the codebook's averages. () for none."""

    weight: Any = ()
    perplexity: Any = ()
    averages: Any = ()


class Said(NamedTuple):
    """Of each example: its latents [b, h, w, D] and codes [b, h, w], where the state learns from them."""

    z: Any = ()
    codes: Any = ()


@dataclass(frozen=True)
class Adversary:
    """Settings as in config.first_stage.AdversaryConfig.

    Attributes:
      model: images -> logits; what it says of one does not depend on the others.
      loss: (logits of data, logits of reconstructions) -> a scalar.
    """

    model: nn.Module
    loss: Callable[[jax.Array, jax.Array], jax.Array]
    start: int
    weight: float = 0.5
    adaptive: bool = True
    penalty: float = 0.0

    def logits(self, params: Params, x: jax.Array) -> Any:
        return self.model.apply({"params": params}, x)

    def active(self, step: jax.Array) -> jax.Array:
        """1 from the first step that it is there at, before that 0."""
        return (step >= self.start).astype(jnp.float32)


@dataclass(frozen=True)
class Autoencoding:
    """An autoencoder, and a discriminator where there is an adversary; a `Task`.

    Its parameters are {"autoencoder", "discriminator"}, its gradients besides those {"generator"}: the autoencoder's
    of -E D(x^), unweighted, because the weight is that of the whole batch's means.

    Attributes:
      model: the network.
      forward: (params, x, [B] keys) -> ((x^, penalty), Passed).
      penalty_weight: of the penalty in the loss.
      optimizer: see `two_sides`.
      key: of the whole run.
      image_shape: [H, W, C].
      adversary: None for none.
      perceptual: None for none.
      perceptual_weight: of it against the pixels' mean.
      pixel: "l1" or "l2".
      decay: of the codebook's averages; None where it is learned by gradient, or is none.
      settings: resolved, for `described`; None for no description.
      judged: what its pictures show; None for none.
      say: is told what looks wrong.
    """

    model: nn.Module
    forward: Forward
    penalty_weight: float
    optimizer: optax.GradientTransformation
    key: jax.Array
    image_shape: tuple[int, int, int]
    adversary: Adversary | None = None
    perceptual: Distance | None = None
    perceptual_weight: float = 1.0
    pixel: str = "l1"
    decay: float | None = None
    settings: Config | None = None
    judged: Judged | None = None
    say: Say = warnings.warn
    reads: tuple[str, ...] = ("image",)

    @property
    def num_codes(self) -> int | None:
        """None without a quantizer."""
        return getattr(self.model, "num_codes", None)

    def init(self, key: jax.Array) -> Params:
        """The networks' parameters."""
        key_autoencoder, key_discriminator = jax.random.split(key)
        x = jnp.zeros((1, *self.image_shape))
        params = {AUTOENCODER: self.model.init(key_autoencoder, x)["params"]}
        if self.adversary is not None:
            params[DISCRIMINATOR] = self.adversary.model.init(key_discriminator, x)["params"]
        return params

    def start(self, params: Params) -> Start:
        """The optimizers' first states, and averages of which the codebook is the quotient."""
        weight = () if self.adversary is None else jnp.zeros(())
        perplexity = () if self.num_codes is None else jnp.zeros(())
        averages = () if self.decay is None else quantizers.codebook_averages(codebook(params))
        return Start(self.optimizer.init(params), Kept(weight, perplexity, averages))

    def gradient(
        self, state: TrainState, batch: Mapping[str, jax.Array], indices: jax.Array, batch_size: int
    ) -> tuple[Means, Said]:
        """The means of the losses and of both sides' gradients; what was encoded, where a codebook learns from it."""
        x = images.to_float(batch["image"])
        keys = jax.vmap(lambda b: jax.random.fold_in(jax.random.fold_in(self.key, state.step), b))(indices)
        own, judge = state.params[AUTOENCODER], state.params.get(DISCRIMINATOR)

        def reconstruct(decoded: jax.Array) -> first_stage.Reconstructed:
            distances = None if self.perceptual is None else self.perceptual.of(x, decoded)
            weight = self.perceptual_weight
            return first_stage.reconstruction(x, decoded, distances, pixel=self.pixel, perceptual_weight=weight)

        adversary = self.adversary
        fool = None if adversary is None else lambda decoded: first_stage.to_fool(adversary.logits(judge, decoded))
        gradients, found = first_stage.autoencoder_gradients(
            lambda params: self.forward(params, x, keys),
            own,
            reconstruct=reconstruct,
            penalty_weight=self.penalty_weight,
            fool=fool,
        )
        grads, parts = {AUTOENCODER: gradients.autoencoder}, self._parts(state.task_state, found)
        if adversary is not None:
            judged, of_judge = self._judge(adversary, judge, x, found.decoded, adversary.active(state.step))
            grads |= {GENERATOR: gradients.generator, DISCRIMINATOR: of_judge}
            parts |= judged
        loss = found.reconstructed.nll + self.penalty_weight * found.penalty
        return Means(loss, parts, grads), self._said(found.passed)

    def _parts(self, kept: Kept, found: first_stage.Found) -> dict[str, jax.Array]:
        parts = {"pixel": found.reconstructed.pixel}
        if self.perceptual is not None:
            parts["perceptual"] = found.reconstructed.perceptual
        if self.num_codes is None:
            return parts | {"kl_nats": jnp.mean(found.passed.kl)}
        return parts | {"codebook": found.penalty, "perplexity": kept.perplexity}

    def _judge(
        self, adversary: Adversary, params: Params, x: jax.Array, decoded: jax.Array, active: jax.Array
    ) -> tuple[dict[str, jax.Array], Params]:
        """What the log shows of the adversary, and the gradient of its loss."""
        decoded = jax.lax.stop_gradient(decoded)

        def loss(params: Params) -> tuple[jax.Array, dict[str, jax.Array]]:
            real, fake = adversary.logits(params, x), adversary.logits(params, decoded)
            own = adversary.loss(real, fake)
            shown = {"discriminator": own, "logits_real": jnp.mean(real), "logits_fake": jnp.mean(fake)}
            if adversary.penalty:
                own = own + adversary.penalty * first_stage.gradient_penalty(partial(adversary.logits, params), x)
            return active * own, shown

        grads, shown = jax.grad(loss, has_aux=True)(params)
        return shown, grads

    def _said(self, passed: first_stage.Passed) -> Said:
        if self.num_codes is None:
            return Said()
        return Said(() if self.decay is None else passed.z, passed.codes)

    def update(self, state: TrainState, means: Means, said: Said) -> TrainState:
        """One update of each optimizer, and of the codebook's averages."""
        grads, weight = dict(means.grads), ()
        if (adversary := self.adversary) is not None:
            both = first_stage.Gradients(grads[AUTOENCODER], grads.pop(GENERATOR))
            weight = first_stage.weight_of(both) if adversary.adaptive else jnp.ones(())
            heard = adversary.active(state.step) * adversary.weight * weight
            grads[AUTOENCODER] = first_stage.combined(both, heard)
        perplexity = ()
        if self.num_codes is not None:
            perplexity = quantizers.perplexity(quantizers.usage(said.codes, self.num_codes))
        averages = state.task_state.averages
        if self.decay is not None:
            averages = quantizers.update_averages(averages, said.z, said.codes, decay=self.decay)
        after = optimized(state, grads, self.optimizer, Kept(weight, perplexity, averages))
        if self.decay is None:
            return after
        return replace(after, params=with_codebook(after.params, quantizers.codebook_of(averages)))

    def pictures(self, params: Params, key: jax.Array) -> np.ndarray | None:
        """Images of the data above their reconstructions; `say` is told what looks wrong."""
        if self.judged is None:
            return None
        found = self.judged.look(params, key)
        for line in self.judged.wrong(found, params):
            self.say(line)
        return self.judged.pictures(found)

    def finish(self, params: Params, workdir: Path) -> None:
        """first_stage.json: the scale of the latents, and how good reconstructions are."""
        if self.judged is not None:
            self.say(self.judged.finish(params, workdir, self.key))

    @property
    def networks(self) -> dict[str, str]:
        """That of the perceptual distance."""
        return {} if self.perceptual is None else {"perceptual distance": self.perceptual.weights}

    def keep(self, workdir: Path) -> None:
        """Nothing: what it encodes does not need it."""

    def described(self, num_parameters: int) -> str:
        """The network, as the options that give it."""
        assert self.settings is not None
        return defaults.described(self.settings, self.image_shape, num_parameters)


def codebook(params: Params) -> jax.Array:
    """[K, D]."""
    return params[AUTOENCODER]["codebook"]["embedding"]


def with_codebook(params: Params, entries: jax.Array) -> Params:
    """The same parameters with these entries [K, D]."""
    own = {**params[AUTOENCODER], "codebook": {"embedding": entries}}
    return {**params, AUTOENCODER: own}


def two_sides(optimizer: optax.GradientTransformation, *, averaged: bool) -> optax.GradientTransformation:
    """The same optimizer for either side, each with its own state and its own clipping; none for averages.

    Args:
      optimizer: of one side.
      averaged: whether the codebook is not the optimizer's.
    """

    def labels(params: Params) -> Any:
        def label(path: tuple[Any, ...], _: jax.Array) -> str:
            names = [each.key for each in path]
            return "averages" if averaged and names[:2] == [AUTOENCODER, "codebook"] else names[0]

        return jax.tree_util.tree_map_with_path(label, params)

    sides: dict[Any, Any] = {AUTOENCODER: optimizer, DISCRIMINATOR: optimizer, "averages": optax.set_to_zero()}
    return optax.partition(sides, labels)


def make(config: Config, say: Say) -> Callable[[Config, Source, jax.Array], Autoencoding]:
    """What a configuration names, and a function that gives it its networks.

    Args:
      config: of the run.
      say: is told what looks wrong in its pictures, and how good the autoencoder is in the end.

    Returns:
      (config resolved for the images, the images, key of the run) -> Autoencoding.

    Raises:
      ImportError, FileNotFoundError, ValueError: as perceptual.make; of the function: settings that do not fit the
        images.
    """
    distance = perceptual.make(config.reconstruction)

    def of_data(config: Config, source: Source, key: jax.Array) -> Autoencoding:
        shape, weight = source.image_shape, config.reconstruction.perceptual_weight
        config.reconstruction.check_fits(shape)
        model, forward, penalty_weight = build.make_autoencoder(config, shape)
        adversary = make_adversary(config, shape)
        decay = config.model.codebook_decay if isinstance(config.model, VQConfig) else None
        judged = Judged(model, source, config.sample.num_images, adversary and adversary.logits)
        optimizer = two_sides(make_optimizer(config.optimizer), averaged=decay is not None)
        return Autoencoding(
            model, forward, penalty_weight, optimizer, key, shape, adversary, distance,
            perceptual_weight=1.0 if weight is None else weight, pixel=config.reconstruction.pixel, decay=decay,
            settings=config, judged=judged, say=say,
        )  # fmt: skip

    return of_data


def make_adversary(config: Config, image_shape: tuple[int, int, int]) -> Adversary | None:
    """That of a resolved configuration.

    Raises:
      ValueError: a discriminator with more layers than the images allow.
    """
    own, model = config.adversary, build.make_discriminator(config, image_shape)
    if model is None:
        return None
    assert own.loss is not None and own.start is not None and own.weight is not None
    return Adversary(
        model, first_stage.LOSSES[own.loss], own.start, own.weight, own.adaptive is True, own.gradient_penalty or 0.0
    )
