"""A run's configuration: frozen dataclasses, the one place where a default is written down.

The defaults are the embedded example: scikit-learn's handwritten digits, a few minutes on a laptop. What belongs to the
size of its images is None here, and config.defaults says it for every size.
"""

import dataclasses
import functools
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from ddpm_jax.config.averages import NARROWEST, WIDEST
from ddpm_jax.config.condition import ConditionConfig
from ddpm_jax.config.evaluate import EvaluateConfig
from ddpm_jax.config.fields import FREE, LARGEST, Section, Tagged, at_least, in_unit_interval, plain, structure
from ddpm_jax.config.first_stage import AdversaryConfig, ReconstructionConfig
from ddpm_jax.config.networks import ClassifierConfig as ClassifierConfig
from ddpm_jax.config.networks import DiTConfig as DiTConfig
from ddpm_jax.config.networks import NetworkConfig, UNetConfig
from ddpm_jax.config.networks import UViTConfig as UViTConfig
from ddpm_jax.config.tasks import TASKS, TaskName
from ddpm_jax.names import unknown
from ddpm_jax.process import LEARNED, PredictionType, VarianceType


@dataclass(frozen=True)
class DataConfig(Section):
    """Which images."""

    name: str = "digits"
    """"digits" (embedded), a TFDS name, a folder of images, an .npy/.npz file of uint8 [N, H, W, C], or a folder of
    latents that ddpm-jax encode wrote."""
    dir: str | None = field(default=None, metadata=FREE)
    """Where TFDS data sets are prepared; TFDS's own default if not given."""
    split: str = "train"
    """TFDS split."""
    image_size: int | None = None
    """Crop to a square and resize to this; by default images must all have one size."""
    key: str | None = None
    """Which array of an .npz file, where several could be images."""
    transparency: str | None = None
    """The colour behind the transparent pictures of a folder, such as black or #rrggbb; white by default. drop keeps
    their colours as stored."""
    labels: str | None = None
    """What the labels of a folder of pictures are: folder (CLASS/picture.png) or prefix (CLASS_0001.png); by default
    what metadata.jsonl or metadata.csv says, or folders. none reads only the images, of any set."""
    flip: bool = False
    """Flip every other image from left to right, at random."""
    encode_with: str | None = field(default=None, metadata=FREE)
    """Train in the latents of this autoencoder, encoded at every step: the directory of a run of --task autoencoder, or
    a folder of diffusers. A folder that ddpm-jax encode wrote needs none."""

    def arguments(self) -> dict[str, Any]:
        """What data.load takes beside the name."""
        names = ("split", "image_size", "key", "transparency", "labels")
        return {"data_dir": self.dir, **{name: getattr(self, name) for name in names}}


@dataclass(frozen=True)
class ScheduleConfig(Section):
    """The noise schedule: a function of ddpm_jax.schedules."""

    name: str = "linear"
    num_timesteps: int = 1000
    arguments: dict[str, float] = field(default_factory=dict)
    """What else the function takes, such as beta_end 0.02."""


ModelConfig = UNetConfig
"""The name from when there was one network."""


@dataclass(frozen=True)
class ObjectiveConfig(Section):
    """What the network predicts, the loss it is trained with, and how t is drawn."""

    loss: Literal["simple", "vlb", "hybrid", "edm"] = "simple"
    """Squared error; the variational bound, bits per dimension without its prior; both, to learn the variance; or the
    weighted error of EDM's preconditioned network, which goes with timesteps lognormal."""
    prediction: PredictionType = "eps"
    variance: VarianceType = "fixed_large"
    """Of p(x_{t-1} | x_t), in the loss and in likelihoods; a learned one doubles the network's output channels."""
    vlb_weight: float | None = None
    """Of the bound's single term in hybrid; T / 1000 by default."""
    weighting: str = "uniform"
    """Of t in simple: a function of ddpm_jax.weightings."""
    weighting_arguments: dict[str, float] = field(default_factory=dict)
    """What else it takes, such as gamma 5."""
    timesteps: str = "uniform"
    """How t is drawn: a function of ddpm_jax.timesteps."""
    timesteps_arguments: dict[str, float] = field(default_factory=dict)
    """What else it takes, such as history 10."""
    sigma_data: float | None = None
    """Standard deviation of the data, in edm; 0.5 by default."""

    def __post_init__(self):
        super().__post_init__()
        if self.loss == "edm" and (self.prediction != "eps" or self.variance in LEARNED):
            raise ValueError(
                "objective.loss 'edm' has its own prediction: objective.prediction must be left at 'eps' and "
                f"objective.variance be fixed, got {self.prediction!r} and {self.variance!r}"
            )
        if self.sigma_data is not None and (self.loss != "edm" or not self.sigma_data > 0):
            raise ValueError(
                "objective.sigma_data must be positive and is for objective.loss 'edm', "
                f"got {self.sigma_data} with {self.loss!r}"
            )
        if self.loss == "simple" and self.variance in LEARNED:
            raise ValueError(
                f"objective.variance {self.variance!r} is not trained by objective.loss 'simple': use 'hybrid' or 'vlb'"
            )
        if self.loss == "hybrid" and self.variance not in LEARNED:
            raise ValueError(
                f"objective.loss 'hybrid' learns the variance: objective.variance must be one of {', '.join(LEARNED)}, "
                f"got {self.variance!r}"
            )
        if self.vlb_weight is not None and (self.loss != "hybrid" or not self.vlb_weight > 0):
            raise ValueError(
                "objective.vlb_weight must be positive and is for objective.loss 'hybrid', "
                f"got {self.vlb_weight} with {self.loss!r}"
            )
        if self.weighting != "uniform" and self.loss != "simple":
            raise ValueError(
                f"objective.weighting is for objective.loss 'simple', got {self.weighting!r} with {self.loss!r}"
            )
        if self.weighting_arguments and self.loss != "simple":
            raise ValueError(
                "objective.weighting_arguments are for objective.loss 'simple', "
                f"got {self.weighting_arguments} with {self.loss!r}"
            )


@dataclass(frozen=True)
class OptimizerConfig(Section):
    """Adam or AdamW, and the average of parameters."""

    name: Literal["adam", "adamw"] = "adam"
    """Adam, or with a weight decay apart from the gradient."""
    learning_rate: float | None = None
    """By default that of the network and the size of the images."""
    warmup_steps: int = 100
    """Of a linear warm-up from 0."""
    decay_steps: int | None = 6000
    """Decay until this step; none keeps the rate after the warm-up."""
    decay: Literal["cosine", "linear"] = "cosine"
    """The form of it."""
    end_rate: float = 0.0
    """What it ends at."""
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float | None = None
    """Of adamw: every step takes the learning rate times this from each parameter; 0.0001 by default."""
    clip_norm: float | None = 1.0
    """Gradients are scaled down to this global norm; none leaves them."""
    ema_decay: float = 0.995
    ema_decays: tuple[float, ...] = ()
    """Further averages, each with its own decay."""
    ema_sigmas: tuple[float, ...] = ()
    """Further averages under a power function of the step: its standard deviation in units of the training so far,
    such as 0.05 0.1."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("ema_decay", "beta1", "beta2"):
            in_unit_interval(f"optimizer.{name}", getattr(self, name))
        for name in ("learning_rate", "clip_norm"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise ValueError(f"optimizer.{name} must be positive, got {value}")
        self._check_rate()
        self._check_averages()
        if self.weight_decay is not None and (self.name != "adamw" or self.weight_decay < 0):
            raise ValueError(
                "optimizer.weight_decay must not be negative and is for optimizer.name 'adamw', "
                f"got {self.weight_decay} with {self.name!r}"
            )

    def _check_rate(self) -> None:
        decay, warmup = self.decay_steps, self.warmup_steps
        for name, steps in (("warmup_steps", warmup), ("decay_steps", decay)):
            at_least(f"optimizer.{name}", 0 if steps is None else steps, 0)
        if decay is None:
            for name, value, default in (("decay", self.decay, "cosine"), ("end_rate", self.end_rate, 0)):
                if value != default:
                    raise ValueError(f"optimizer.{name} is for optimizer.decay_steps, which is None, got {value!r}")
        elif decay <= warmup:
            raise ValueError(f"optimizer.warmup_steps must be below optimizer.decay_steps, got {warmup} and {decay}")
        if not 0 <= self.end_rate <= (self.learning_rate or LARGEST):
            raise ValueError(
                f"optimizer.end_rate must lie between 0 and optimizer.learning_rate, got {self.end_rate} "
                f"and {self.learning_rate}"
            )

    def _check_averages(self) -> None:
        for name, interval, within in (
            ("ema_decays", "[0, 1)", lambda decay: 0 <= decay < 1),
            ("ema_sigmas", f"[{NARROWEST}, {WIDEST:.6f}]", lambda sigma: NARROWEST <= sigma <= WIDEST),
        ):
            values = getattr(self, name)
            if not all(map(within, values)) or len(set(values)) < len(values):
                raise ValueError(f"optimizer.{name} must be different numbers in {interval}, got {values}")


@dataclass(frozen=True)
class SampleConfig(Section):
    """The pictures made while training."""

    sampler: str = "ddim"
    num_steps: int = 50
    num_images: int = 64
    clip: float | None = 1.0
    """The predicted x_0 is clipped to [-clip, clip]; none for data that is not images."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("num_steps", "num_images"):
            at_least(f"sample.{name}", getattr(self, name))


NonFinite = Literal["stop", "skip"]
# jax.random.key drops the higher bits without a word.
MOST_SEED = 2**32 - 1


@dataclass(frozen=True)
class TrainConfig(Section):
    """How long, how often, and the seed of everything."""

    num_steps: int = field(default=6000, metadata=FREE)
    batch_size: int = 64
    accumulate: int = field(default=1, metadata=FREE)
    """Micro-batches that a batch is computed in, one after the other, where it is too large for the memory."""
    steps_per_call: int = field(default=1, metadata=FREE)
    """Steps in one program, where starting a program takes long beside a step; divides the other intervals. Not for
    CPUs."""
    non_finite: NonFinite = field(default="stop", metadata=FREE)
    """Where loss or gradient is not finite: stop, or skip the step, which leaves everything as it was, and count it."""
    max_skipped: int = field(default=100, metadata=FREE)
    """More skipped steps than this in a row stop the run."""
    seed: int = 0
    log_every: int = field(default=20, metadata=FREE)
    checkpoint_every: int = field(default=1000, metadata=FREE)
    checkpoint_minutes: float | None = field(default=None, metadata=FREE)
    """A checkpoint also after so many minutes without one; looked at whenever the log is written."""
    keep_checkpoints: int = field(default=3, metadata=FREE)
    average_every: int | None = field(default=None, metadata=FREE)
    """Keep the averages of optimizer.ema_sigmas every so many steps and at the end: from them, averages of other widths
    are made after the training. By default they are not kept."""
    sample_every: int = field(default=500, metadata=FREE)
    begin_from: str | None = None
    """The directory of another run of the same network, whose newest checkpoint this one begins with, and not again
    when it is resumed."""
    begin_with: Literal["all", "params", "ema"] = "all"
    """What it takes from there: all, to go on as that run would from its step, with other settings; or params or their
    average, ema, at step 0 and with a fresh optimizer."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("num_steps", "batch_size", "accumulate", "steps_per_call", "max_skipped", "log_every",
                     "checkpoint_every", "keep_checkpoints", "sample_every"):  # fmt: skip
            at_least(f"train.{name}", getattr(self, name))
        if self.average_every is not None:
            at_least("train.average_every", self.average_every)
        for name in ("log_every", "checkpoint_every", "sample_every", "average_every"):
            _multiple(f"train.{name}", getattr(self, name) or 0, self.steps_per_call)
        if self.checkpoint_minutes is not None and not self.checkpoint_minutes > 0:
            raise ValueError(f"train.checkpoint_minutes must be positive, got {self.checkpoint_minutes}")
        at_least("train.seed", self.seed, 0, most=MOST_SEED)
        if self.begin_from is None and self.begin_with != "all":
            raise ValueError(f"train.begin_with is for train.begin_from, got {self.begin_with!r} without it")


def _multiple(name: str, value: int, steps_per_call: int) -> None:
    if value % steps_per_call:
        raise ValueError(f"{name} must be a multiple of train.steps_per_call, got {value} and {steps_per_call}")


MESH_AXES = ("data", "fsdp")


@dataclass(frozen=True)
class ParallelConfig(Section):
    """How the devices share the work; by default each has the whole state and a part of the batch."""

    mesh: dict[str, int] = field(default_factory=dict)
    """The devices as a grid, such as data 8 fsdp 4: both axes divide the batch, fsdp also divides parameters, their
    average and the optimizer's state."""

    def __post_init__(self):
        super().__post_init__()
        for name, size in self.mesh.items():
            if name not in MESH_AXES:
                raise unknown("axis of parallel.mesh", name, MESH_AXES)
            at_least(f"parallel.mesh {name}", size)


@dataclass(frozen=True)
class Config(Section):
    """One run."""

    task: TaskName = "diffusion"
    """What is trained: a diffusion model, a classifier of noisy images, which guides one, or an autoencoder, in whose
    latents one can be trained."""
    data: DataConfig = DataConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    model: NetworkConfig = field(default_factory=UNetConfig)
    condition: ConditionConfig = field(default_factory=ConditionConfig)
    objective: ObjectiveConfig = ObjectiveConfig()
    reconstruction: ReconstructionConfig = field(default_factory=ReconstructionConfig)
    adversary: AdversaryConfig = field(default_factory=AdversaryConfig)
    optimizer: OptimizerConfig = OptimizerConfig()
    sample: SampleConfig = field(default=SampleConfig(), metadata=FREE)
    evaluate: EvaluateConfig = field(default=EvaluateConfig(), metadata=FREE)
    train: TrainConfig = TrainConfig()
    parallel: ParallelConfig = field(default=ParallelConfig(), metadata=FREE)

    def __post_init__(self):
        super().__post_init__()
        self._check_task()
        _multiple("evaluate.every", self.evaluate.every or 0, self.train.steps_per_call)
        self.adversary.check_steps(self.train.num_steps)
        if self.train.average_every is not None and not self.optimizer.ema_sigmas:
            raise ValueError(
                "train.average_every keeps the averages of optimizer.ema_sigmas: "
                f"got {self.train.average_every} without any"
            )

    def _check_task(self) -> None:
        reads = TASKS[self.task]
        if self.model.name not in reads.networks:
            allowed = " or ".join(map(repr, reads.networks))
            raise ValueError(f"model must be {allowed} for task {self.task!r}, got {self.model.name!r}")
        default = _defaults()
        for name, value in flatten(self).items():
            if reads.leaves(name) and value != default[name]:
                raise ValueError(f"{name} is no setting of task {self.task!r}, got {value!r}")


@functools.cache
def _defaults() -> dict[str, Any]:
    """A configuration where nothing is given, flat; made of its sections, because the whole asks for this."""
    made = [(item.name, item.default if item.default_factory is dataclasses.MISSING else item.default_factory())
            for item in dataclasses.fields(Config)]  # fmt: skip
    return {name: value for section, own in made for name, value in _flat(section, own).items()}


T = TypeVar("T")


def to_dict(config: Any) -> dict[str, Any]:
    """The configuration as plain JSON values."""
    return plain(config)


def from_dict(values: dict[str, Any], cls: type[T]) -> T:
    """The configuration from plain JSON values.

    Raises:
      ValueError: unknown keys, or values of another type.
    """
    try:
        return structure(values, cls)
    except ValueError as error:
        raise ValueError(f"not a configuration: {error}") from None


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """{"train.seed": 0, ...}: a value per leaf field."""
    flat = {}
    for item in dataclasses.fields(config):
        flat |= _flat(prefix + item.name, getattr(config, item.name))
    return flat


def _flat(name: str, value: Any) -> dict[str, Any]:
    return flatten(value, f"{name}.") if dataclasses.is_dataclass(value) else {name: value}


def differences(a: Any, b: Any, prefix: str = "") -> list[str]:
    """Fields that make a and b different runs, as "name: value in a, value in b"; those that are FREE do not."""
    found = []
    for item in dataclasses.fields(a):
        before, after, name = getattr(a, item.name), getattr(b, item.name), prefix + item.name
        if before == after or item.metadata == FREE:
            continue
        if not dataclasses.is_dataclass(before):
            found.append(f"{name}: {before!r}, now {after!r}")
        elif type(before) is type(after):
            found += differences(before, after, f"{name}.")
        else:
            assert isinstance(before, Tagged) and isinstance(after, Tagged)
            found.append(f"{name}: {before.name!r}, now {after.name!r}")
    return found
