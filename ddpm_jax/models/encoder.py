"""What the U-Net and the noisy classifier share: the embedding of time, the way down, the middle.

Images are [B, H, W, C] and t is [B]. Level l works at H / 2^l with channels * channel_multipliers[l] channels;
down_l, up_l in the parameter names are that l, 0 being the finest.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import count, repeat
from typing import NamedTuple, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype
from jax import lax
from jax.ad_checkpoint import checkpoint_policies

from ddpm_jax.models.convolution import PRODUCT
from ddpm_jax.models.embeddings import fourier_embedding, timestep_embedding
from ddpm_jax.models.layers import ACTIVATIONS, Attention, Dense, ResBlock, average_pool, conv3x3, groups_of
from ddpm_jax.names import choose, unknown

Resample = Callable[[jax.Array], jax.Array]
Block = TypeVar("Block", bound=type[nn.Module])

# "SAME" pads an even image at the bottom and right only, as TensorFlow does.
PADDINGS = {0: "SAME", 1: ((1, 1), (1, 1))}

REMAT_POLICIES = {
    "nothing": checkpoint_policies.nothing_saveable,
    "products": checkpoint_policies.save_only_these_names(PRODUCT),
}


class Blocks(NamedTuple):
    """The two kinds of block a U-Net is made of, as functions that create and apply one."""

    res: Callable[..., jax.Array]
    """(h, channels, name, resample) -> h."""
    attention: Callable[[jax.Array, int, str], jax.Array]
    """(h, num_heads, name) -> h."""


class Encoder(nn.Module):
    """The settings and blocks of the networks built on DDPM's way down; UNet and Classifier say what comes of it.

    Source: Ho et al. 2020 (arXiv:2006.11239), appendix B; scale_shift_norm, num_heads and attention at several
    resolutions: Nichol and Dhariwal 2021 (arXiv:2102.09672), appendix A; "resblock" resampling and
    num_head_channels: Dhariwal and Nichol 2021 (arXiv:2105.05233), section 3.

    Attributes:
      channels: the width that channel_multipliers count in; the time embedding has 4 times as many.
      channel_multipliers: width of each level in units of `channels`; need not be whole, the products must be.
      num_res_blocks: res blocks per level on the way down; one more on the way up.
      attention_resolutions: image heights at which every res block is followed by self attention; None where
        attention_factors says it.
      attention_factors: the same by downsampling factor: 1, 2, 4, ... wherever the level's height is H / factor.
      dropout: rate inside the res blocks, when train.
      out_channels: channels of the output; twice the image's where the variance is learned.
      num_groups: groups of every group norm.
      norm_eps: added to the variance in every group norm.
      num_heads: heads of every attention block.
      num_head_channels: or the channels of each head, the number of heads following from the width.
      scale_shift_norm: the embedding scales and shifts the second norm of a res block instead of being added.
      downsample: "conv" (stride 2), "pool" (mean of 2 x 2) or "resblock" (pooled inside one more res block); or a
        sequence with one of these per step from a level to the next, the finest first.
      downsample_padding: of the stride 2 convolutions: 0 pads bottom and right (TensorFlow's "SAME"), 1 every side.
      time_cosine_first: the embedding of t is [cos, sin], not [sin, cos].
      time_endpoint: its slowest frequency is 1/10000 exactly.
      time_embedding: "positional" (above) or "fourier": [sin, cos] of 2 pi w log t, with w ~ N(0, 16^2) drawn once and
        not trained.
      activation: of the res blocks: "silu", "gelu", "mish" or "relu".
      mid_attention: whether there is attention in the middle.
      mid_attention_norm: whether the middle attention block starts with a norm, like the others.
      mid_attention_groups: groups of that norm; None for num_groups.
      mid_scale: what the sums of the middle's res blocks and self attention are divided by.
      remat: recompute each block in the backward pass instead of storing what is inside.
      remat_policy: what is stored nevertheless: "nothing", or "products": the results of convolutions and dense layers.
        Then norms, nonlinearities and attention are all that is computed twice.
      dtype: of convolutions and matrix products. Parameters, norms, softmax, the last layer and the output are
        float32.
    """

    channels: int = 128
    channel_multipliers: Sequence[float] = (1, 2, 2, 2)
    num_res_blocks: int = 2
    attention_resolutions: Sequence[int] | None = (16,)
    attention_factors: Sequence[int] | None = None
    dropout: float = 0.1
    out_channels: int = 3
    num_groups: int = 32
    norm_eps: float = 1e-6
    num_heads: int = 1
    num_head_channels: int | None = None
    scale_shift_norm: bool = False
    downsample: str | Sequence[str] = "conv"
    downsample_padding: int = 0
    time_cosine_first: bool = False
    time_endpoint: bool = True
    time_embedding: str = "positional"
    activation: str = "silu"
    mid_attention: bool = True
    mid_attention_norm: bool = True
    mid_attention_groups: int | None = None
    mid_scale: float = 1.0
    remat: bool = False
    remat_policy: str = "nothing"
    dtype: Dtype = jnp.float32

    @property
    def levels(self) -> range:
        return range(len(self.channel_multipliers))

    def width(self, level: int) -> int:
        """Channels at this level."""
        return round(self.channels * self.channel_multipliers[level])

    def attends(self, height: int, level: int) -> bool:
        """Whether res blocks of this level, at this height, are followed by attention."""
        if self.attention_factors is not None:
            return 2**level in self.attention_factors
        return self.attention_resolutions is not None and height in self.attention_resolutions

    def embed_time(self, t: jax.Array) -> jax.Array:
        """[B, 4 channels], from t [B]."""
        return self.embed(t, "time")

    def embed(self, t: jax.Array, name: str) -> jax.Array:
        """dense(silu(dense(sines and cosines of t)))."""
        if self.time_embedding == "fourier":
            h = fourier_embedding(t, self._frequencies(name), cosine_first=self.time_cosine_first)
        else:
            h = timestep_embedding(t, self.channels, cosine_first=self.time_cosine_first, endpoint=self.time_endpoint)
        h = Dense(4 * self.channels, dtype=self.dtype, name=f"{name}_1")(h)
        return Dense(4 * self.channels, dtype=self.dtype, name=f"{name}_2")(nn.silu(h))

    def _frequencies(self, name: str) -> jax.Array:
        """[channels]: made for the time, which comes first; what else is embedded has the same."""
        if name != "time":
            return lax.stop_gradient(self.get_variable("params", "time_frequencies"))
        start = nn.initializers.normal(16.0)
        return lax.stop_gradient(self.param("time_frequencies", start, (self.channels,), jnp.float32))

    @nn.nowrap
    def rematerialized(self, block: Block) -> Block:
        """This kind of block as `remat` and `remat_policy` want it."""
        policy = choose("remat_policy", self.remat_policy, REMAT_POLICIES)
        return nn.remat(block, policy=policy) if self.remat else block

    @nn.nowrap
    def blocks(self, temb: jax.Array, keys: Iterator[jax.Array] | Iterator[None]) -> Blocks:
        """Res blocks at this embedding, each with the next dropout keys, and self attention."""
        res_block, attention_block = self.rematerialized(ResBlock), self.rematerialized(Attention)

        def res(h: jax.Array, channels: int, name: str, resample: Resample | None = None) -> jax.Array:
            block = res_block(
                channels, self.num_groups, self.dropout, self.dtype, self.norm_eps, self.scale_shift_norm, resample,
                self.activation, self._scale(name), name=name,
            )  # fmt: skip
            return block(h, temb, next(keys))

        def attention(h: jax.Array, num_heads: int, name: str) -> jax.Array:
            groups = self._middle_groups() if name == "mid_attention" else self.num_groups
            return attention_block(groups, self.dtype, self.norm_eps, num_heads, self._scale(name), name=name)(h)

        return Blocks(res, attention)

    def _scale(self, name: str) -> float:
        return self.mid_scale if name.startswith("mid_") else 1.0

    def _middle_groups(self) -> int | None:
        groups = self.num_groups if self.mid_attention_groups is None else self.mid_attention_groups
        return groups_of(self.width(-1), groups) if self.mid_attention_norm else None

    def stage(self, h: jax.Array, blocks: Blocks, level: int, name: str, num_heads: int, attends: bool) -> jax.Array:
        """A res block, and attention if this level attends; {} in the name stands for the kind of block."""
        h = blocks.res(h, self.width(level), name.format("res"), None)
        if not attends:
            return h
        return blocks.attention(h, self.heads(h.shape[-1], num_heads), name.format("attention"))

    def heads(self, channels: int, num_heads: int) -> int:
        """Heads of an attention block of this width: num_heads unless num_head_channels is set."""
        size = self.num_head_channels
        if size is not None and channels % size:
            raise ValueError(f"num_head_channels {size} does not divide the {channels} channels of an attention block")
        return num_heads if size is None else channels // size

    def down(self, x: jax.Array, blocks: Blocks) -> list[jax.Array]:
        """conv_in, every stage and every downsampling of the way down, in this order: what the way up is given."""
        outputs = [conv3x3(self.width(0), dtype=self.dtype, name="conv_in")(x)]
        for level in self.levels:
            for i in range(self.num_res_blocks):
                name, attends = f"down_{level}_{{}}_{i}", self.attends(outputs[-1].shape[1], level)
                outputs.append(self.stage(outputs[-1], blocks, level, name, self.num_heads, attends))
            if level != self.levels[-1]:
                outputs.append(self._halve(outputs[-1], blocks, level))
        return outputs

    def middle(self, h: jax.Array, blocks: Blocks) -> jax.Array:
        """Res block, attention unless there is none, res block, at the coarsest level."""
        h = blocks.res(h, self.width(-1), "mid_res_0", None)
        if self.mid_attention:
            h = blocks.attention(h, self.heads(h.shape[-1], self.num_heads), "mid_attention")
        return blocks.res(h, self.width(-1), "mid_res_1", None)

    def _halve(self, h: jax.Array, blocks: Blocks, level: int) -> jax.Array:
        name, kind = f"down_{level}_downsample", each(self.downsample, level)
        if kind == "resblock":
            return blocks.res(h, h.shape[-1], name, average_pool)
        if kind == "pool":
            return average_pool(h)
        padding = PADDINGS[self.downsample_padding]
        return conv3x3(h.shape[-1], strides=2, padding=padding, dtype=self.dtype, name=name)(h)

    def block_keys(
        self, batch: int, train: bool, dropout_keys: jax.Array | None
    ) -> Iterator[jax.Array] | Iterator[None]:
        """[B] dropout keys for one res block after the other, or None for each where there is no dropout."""
        if not train or self.dropout == 0:
            return repeat(None)
        keys = jax.random.split(self.make_rng("dropout"), batch) if dropout_keys is None else dropout_keys
        fold_in = jax.vmap(jax.random.fold_in, in_axes=(0, None))
        return (fold_in(keys, block) for block in count())

    def check_inputs(self, x_t: jax.Array, t: jax.Array, dropout_keys: jax.Array | None) -> None:
        """Raises ValueError where shapes do not fit each other, or the settings."""
        if x_t.ndim != 4:
            raise ValueError(f"x_t must be [B, H, W, C], got shape {x_t.shape}")
        if t.shape != x_t.shape[:1] or not jnp.issubdtype(t.dtype, jnp.floating):
            raise ValueError(f"t must be [B] float with B = {x_t.shape[0]}, got {t.dtype}{list(t.shape)}")
        if dropout_keys is not None and dropout_keys.shape[:1] != x_t.shape[:1]:
            raise ValueError(f"dropout_keys must be [B] with B = {x_t.shape[0]}, got {list(dropout_keys.shape)}")
        self.check_settings()
        height, width = x_t.shape[1:3]
        factor = 2 ** self.levels[-1]
        if height % factor or width % factor:
            raise ValueError(f"H and W must be divisible by {factor}, got {height} x {width}")
        heights = [height >> level for level in self.levels]
        if not set(self.attention_resolutions or ()) <= set(heights):
            raise ValueError(f"attention_resolutions {self.attention_resolutions} are not all among {heights}")

    def check_settings(self) -> None:
        """Raises ValueError where settings do not fit each other."""
        if not self.channel_multipliers or min(self.channel_multipliers) <= 0:
            raise ValueError(f"channel_multipliers must be positive, got {self.channel_multipliers}")
        if self.num_res_blocks < 1:
            raise ValueError(f"num_res_blocks must be at least 1, got {self.num_res_blocks}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")
        for level, multiplier in enumerate(self.channel_multipliers):
            if abs(self.channels * multiplier - self.width(level)) > 1e-6:
                raise ValueError(f"channels {self.channels} times the multiplier {multiplier} is not a whole number")
            if self.num_groups is not None and self.width(level) % self.num_groups:
                raise ValueError(f"channels {self.width(level)} is not divisible by num_groups {self.num_groups}")
        if (self.attention_resolutions is None) == (self.attention_factors is None):
            raise ValueError(
                "one of attention_resolutions and attention_factors must be None, "
                f"got {self.attention_resolutions} and {self.attention_factors}"
            )
        self.check_factors("attention_factors", self.attention_factors)
        if self.num_head_channels is not None and self.num_heads != 1:
            raise ValueError(f"num_heads {self.num_heads} excludes num_head_channels {self.num_head_channels}")
        if self.downsample_padding not in PADDINGS:
            raise ValueError(f"downsample_padding must be 0 or 1, got {self.downsample_padding}")
        self.check_resampling("downsample", self.downsample, ("conv", "pool", "resblock"))
        choose("activation", self.activation, ACTIVATIONS)
        self._check_time()
        self._check_middle()

    def _check_time(self) -> None:
        if self.time_embedding not in ("positional", "fourier"):
            raise unknown("time_embedding", self.time_embedding, ("positional", "fourier"))
        if self.time_embedding == "fourier" and not self.time_endpoint:
            raise ValueError("time_endpoint False goes with time_embedding 'positional', got 'fourier'")

    def _check_middle(self) -> None:
        groups = self.mid_attention_groups
        if groups is not None and (groups < 1 or self.width(-1) % groups):
            raise ValueError(
                f"mid_attention_groups {groups} does not divide the {self.width(-1)} channels of the middle"
            )
        if groups is not None and not (self.mid_attention and self.mid_attention_norm):
            raise ValueError(f"mid_attention_groups {groups} needs mid_attention and mid_attention_norm")
        if not 0 < abs(self.mid_scale) < float("inf"):
            raise ValueError(f"mid_scale must be finite and not 0, got {self.mid_scale}")

    def check_factors(self, setting: str, found: Sequence[int] | None) -> None:
        """Raises ValueError unless these are downsampling factors of levels."""
        factors = [2**level for level in self.levels]
        if not set(found or ()) <= set(factors):
            raise ValueError(f"{setting} {found} are not all among {factors}")

    def check_resampling(self, setting: str, kinds: str | Sequence[str], allowed: tuple[str, ...]) -> None:
        """Raises ValueError unless kinds is one of those allowed, or a sequence of one per step between levels."""
        names = (kinds,) if isinstance(kinds, str) else kinds
        if not isinstance(kinds, str) and len(kinds) != len(self.levels) - 1:
            raise ValueError(f"{setting} must have {len(self.levels) - 1} entries, one per step, got {len(kinds)}")
        for name in names:
            if name not in allowed:
                raise unknown(setting, name, allowed)


def each(kinds: str | Sequence[str], step: int) -> str:
    """The kind of resampling between level `step` and the next."""
    return kinds if isinstance(kinds, str) else kinds[step]
