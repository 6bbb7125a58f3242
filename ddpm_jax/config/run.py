"""A run's configuration: frozen dataclasses, the one place where a default is written down.

The defaults are the embedded example: scikit-learn's handwritten digits, a few minutes on a laptop. What belongs to the
size of its images is None here, and train.defaults says it for every size.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from ddpm_jax.config.averages import NARROWEST, WIDEST
from ddpm_jax.config.fields import Section, at_least, in_unit_interval, structure
from ddpm_jax.names import unknown
from ddpm_jax.process import LEARNED, PredictionType, VarianceType


@dataclass(frozen=True)
class DataConfig(Section):
    """Which images."""

    name: str = "digits"
    """"digits" (embedded), a TFDS name, a folder of images, or an .npy/.npz file of uint8 [N, H, W, C]."""
    dir: str | None = None
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
    flip: bool = False
    """Flip every other image from left to right, at random."""

    def arguments(self) -> dict[str, Any]:
        """What data.load takes beside the name."""
        names = ("split", "image_size", "key", "transparency")
        return {"data_dir": self.dir, **{name: getattr(self, name) for name in names}}


@dataclass(frozen=True)
class ScheduleConfig(Section):
    """The noise schedule: a function of ddpm_jax.schedules."""

    name: str = "linear"
    num_timesteps: int = 1000
    arguments: dict[str, float] = field(default_factory=dict)
    """What else the function takes, such as beta_end 0.02."""


@dataclass(frozen=True)
class ModelConfig(Section):
    """The U-Net, as models.UNet; its output channels are those of the images, twice as many with a learned variance.

    What is None follows from the size of the images: train.defaults.
    """

    channels: int | None = None
    channel_multipliers: tuple[int, ...] | None = None
    num_res_blocks: int = 1
    attention_resolutions: tuple[int, ...] | None = None
    dropout: float = 0.0
    num_groups: int | None = None
    norm_eps: float = 1e-6
    num_heads: int = 1
    num_head_channels: int | None = None
    """Channels of each attention head, instead of num_heads."""
    scale_shift_norm: bool = False
    """Whether time scales and shifts a norm instead of being added."""
    downsample: Literal["conv", "pool", "resblock"] = "conv"
    downsample_padding: Literal[0, 1] = 0
    upsample: Literal["conv", "nearest", "resblock"] = "conv"
    time_cosine_first: bool = False
    time_endpoint: bool = True
    remat: bool = False
    """Compute blocks again in the backward pass rather than keep what is inside them."""
    remat_policy: Literal["nothing", "products"] = "nothing"
    """What remat keeps nevertheless: products are the results of convolutions and dense layers."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of convolutions and matrix products; parameters, norms and loss are float32."""

    def __post_init__(self):
        super().__post_init__()
        if self.channels is not None:
            at_least("model.channels", self.channels, 4, most=2**16)
        for multiplier in self.channel_multipliers or ():
            at_least("model.channel_multipliers", multiplier, most=2**16)
        at_least("model.num_res_blocks", self.num_res_blocks, most=2**10)
        for name in ("num_groups", "num_heads", "num_head_channels"):
            if (value := getattr(self, name)) is not None:
                at_least(f"model.{name}", value)
        in_unit_interval("model.dropout", self.dropout)
        if self.norm_eps <= 0:
            raise ValueError(f"model.norm_eps must be positive, got {self.norm_eps}")
        if self.remat_policy != "nothing" and not self.remat:
            raise ValueError(f"model.remat_policy {self.remat_policy!r} is for model.remat, which is off")


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


@dataclass(frozen=True)
class OptimizerConfig(Section):
    """Adam, and the average of parameters."""

    learning_rate: float | None = None
    """By default 0.006 for images of the digits' size, 0.0002 for larger ones."""
    warmup_steps: int = 100
    decay_steps: int | None = 6000
    """Cosine decay to 0 at this step; none keeps the rate after the warm-up."""
    beta1: float = 0.9
    beta2: float = 0.999
    clip_norm: float | None = 1.0
    """Gradients are scaled down to this global norm; none leaves them."""
    ema_decay: float = 0.995
    ema_decays: tuple[float, ...] = ()
    """Further averages, each with its own decay."""
    ema_sigmas: tuple[float, ...] = ()
    """Further averages under a power function of the step: its standard deviation in units of the training so far,
    such as 0.05 0.1."""


@dataclass(frozen=True)
class SampleConfig(Section):
    """The pictures made while training."""

    sampler: str = "ddim"
    num_steps: int = 50
    num_images: int = 64
    clip: float | None = 1.0
    """The predicted x_0 is clipped to [-clip, clip]; none for data that is not images."""


NonFinite = Literal["stop", "skip"]


@dataclass(frozen=True)
class TrainConfig(Section):
    """How long, how often, and the seed of everything."""

    num_steps: int = 6000
    batch_size: int = 64
    accumulate: int = 1
    """Micro-batches that a batch is computed in, one after the other, where it is too large for the memory."""
    steps_per_call: int = 1
    """Steps in one program, where starting a program takes long beside a step; divides the other intervals. Not for
    CPUs."""
    non_finite: NonFinite = "stop"
    """Where loss or gradient is not finite: stop, or skip the step, which leaves everything as it was, and count it."""
    max_skipped: int = 100
    """More skipped steps than this in a row stop the run."""
    seed: int = 0
    log_every: int = 20
    checkpoint_every: int = 1000
    checkpoint_minutes: float | None = None
    """A checkpoint also after so many minutes without one; looked at whenever the log is written."""
    keep_checkpoints: int = 3
    average_every: int | None = None
    """Keep the averages of optimizer.ema_sigmas every so many steps and at the end: from them, averages of other widths
    are made after the training. By default they are not kept."""
    sample_every: int = 500
    begin_from: str | None = None
    """The directory of another run of the same network, whose newest checkpoint this one begins with, and not again
    when it is resumed."""
    begin_with: Literal["all", "params", "ema"] = "all"
    """What it takes from there: all, to go on as that run would from its step, with other settings; or params or their
    average, ema, at step 0 and with a fresh optimizer."""

    def __post_init__(self):
        super().__post_init__()
        if self.begin_from is None and self.begin_with != "all":
            raise ValueError(f"train.begin_with is for train.begin_from, got {self.begin_with!r} without it")


# jax.random.key drops the higher bits without a word.
MOST_SEED = 2**32 - 1
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

    data: DataConfig = DataConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    model: ModelConfig = ModelConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    sample: SampleConfig = SampleConfig()
    train: TrainConfig = TrainConfig()
    parallel: ParallelConfig = ParallelConfig()

    def __post_init__(self):
        super().__post_init__()
        for name in ("num_steps", "batch_size", "accumulate", "steps_per_call", "max_skipped", "log_every",
                     "checkpoint_every", "keep_checkpoints", "sample_every"):  # fmt: skip
            at_least(f"train.{name}", getattr(self.train, name))
        for name in ("log_every", "checkpoint_every", "sample_every", "average_every"):
            _multiple(f"train.{name}", getattr(self.train, name) or 0, self.train.steps_per_call)
        if self.train.checkpoint_minutes is not None and not self.train.checkpoint_minutes > 0:
            raise ValueError(f"train.checkpoint_minutes must be positive, got {self.train.checkpoint_minutes}")
        for name in ("num_steps", "num_images"):
            at_least(f"sample.{name}", getattr(self.sample, name))
        for name in ("ema_decay", "beta1", "beta2"):
            in_unit_interval(f"optimizer.{name}", getattr(self.optimizer, name))
        _check_averages(self.optimizer, self.train)
        at_least("train.seed", self.train.seed, 0, most=MOST_SEED)
        for name in ("learning_rate", "clip_norm"):
            if (value := getattr(self.optimizer, name)) is not None and value <= 0:
                raise ValueError(f"optimizer.{name} must be positive, got {value}")
        decay, warmup = self.optimizer.decay_steps, self.optimizer.warmup_steps
        for name, steps in (("warmup_steps", warmup), ("decay_steps", decay)):
            at_least(f"optimizer.{name}", 0 if steps is None else steps, 0)
        if decay is not None and decay <= warmup:
            raise ValueError(f"optimizer.warmup_steps must be below optimizer.decay_steps, got {warmup} and {decay}")


def _check_averages(optimizer: OptimizerConfig, train: TrainConfig) -> None:
    for name, interval, within in (
        ("ema_decays", "[0, 1)", lambda decay: 0 <= decay < 1),
        ("ema_sigmas", f"[{NARROWEST}, {WIDEST:.6f}]", lambda sigma: NARROWEST <= sigma <= WIDEST),
    ):
        values = getattr(optimizer, name)
        if not all(map(within, values)) or len(set(values)) < len(values):
            raise ValueError(f"optimizer.{name} must be different numbers in {interval}, got {values}")
    if train.average_every is not None:
        at_least("train.average_every", train.average_every)
        if not optimizer.ema_sigmas:
            raise ValueError(
                f"train.average_every keeps the averages of optimizer.ema_sigmas: got {train.average_every} without any"
            )


def _multiple(name: str, value: int, steps_per_call: int) -> None:
    if value % steps_per_call:
        raise ValueError(f"{name} must be a multiple of train.steps_per_call, got {value} and {steps_per_call}")


# What may change when a run is continued: the numbers of step k do not depend on these, but for the rounding of sums
# in another order, as on another number of devices; max_skipped and non_finite decide whether there is a step k.
FREE = ("data.dir", "sample", "train.num_steps", "train.log_every", "train.checkpoint_every",
        "train.checkpoint_minutes", "train.keep_checkpoints", "train.average_every", "train.sample_every",
        "train.accumulate", "train.steps_per_call", "train.non_finite", "train.max_skipped", "model.remat",
        "model.remat_policy", "parallel")  # fmt: skip

T = TypeVar("T")


def to_dict(config: Any) -> dict[str, Any]:
    """The configuration as plain JSON values."""
    return dataclasses.asdict(config)


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
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            flat |= flatten(value, f"{prefix}{item.name}.")
        else:
            flat[prefix + item.name] = value
    return flat


def differences(a: Config, b: Config) -> list[str]:
    """Fields that make a and b different runs, as "name: value in a, value in b"."""
    flat_a, flat_b = flatten(a), flatten(b)
    free = lambda name: any(name == f or name.startswith(f + ".") for f in FREE)
    return [f"{k}: {flat_a[k]!r}, now {flat_b[k]!r}" for k in flat_a if flat_a[k] != flat_b[k] and not free(k)]
