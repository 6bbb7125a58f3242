"""The classifier of noisy images: p(y | x_t, t), which guides ADM's samples."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddpm_jax.models.encoder import Encoder
from ddpm_jax.models.layers import Dense, GroupNorm, attend, near_zero_init
from ddpm_jax.names import choose

HIDDEN = 2048  # width of the layer between features and logits of the spatial pools


class Classifier(Encoder):
    """model(x_t, t): logits [B, out_channels] of p(y | x_t, t). The U-Net's way down and middle, then a pool.

    Source: Dhariwal and Nichol 2021 (arXiv:2105.05233), section 4; "attention" pools as in Radford et al. 2021
    (arXiv:2103.00020), section 2.4.

    Attributes, besides those of Encoder:
      out_channels: number of classes.
      pool: from features to logits. "attention": the mean token attends to all others, with learned positions, so
        the image size is fixed by the parameters; needs num_head_channels. "adaptive": the mean over the image.
        "spatial": the means of what every layer of the way down puts out, through one hidden layer with ReLU;
        "spatial_v2" with group norm and SiLU.
    """

    out_channels: int = 1000
    pool: str = "attention"

    @nn.compact
    def __call__(
        self, x_t: jax.Array, t: jax.Array, *, train: bool = False, dropout_keys: jax.Array | None = None
    ) -> jax.Array:
        """Logits of the classes of x_t at time t.

        Args:
          x_t: [B, H, W, C] noisy images.
          t: [B] float, the model's time.
          train: whether dropout is on.
          dropout_keys: [B] random keys, as for the U-Net.

        Returns:
          [B, out_channels] float32.

        Raises:
          ValueError: a wrong shape, or settings that do not fit it or each other. Raised while tracing.
        """
        self.check_inputs(x_t, t, dropout_keys)
        blocks = self.blocks(self.embed_time(t), self.block_keys(len(x_t), train, dropout_keys))
        outputs = self.down(x_t, blocks)
        outputs.append(self.middle(outputs[-1], blocks))
        return choose("pool", self.pool, POOLS)(self, [h.astype(jnp.float32) for h in outputs])

    def adaptive(self, outputs: list[jax.Array]) -> jax.Array:
        """dense(mean(silu(norm(h)))), h the output of the middle."""
        h = self._normalized(outputs[-1]).mean(axis=(1, 2))
        return Dense(self.out_channels, kernel_init=near_zero_init, name="logits")(h)

    def attention(self, outputs: list[jax.Array]) -> jax.Array:
        """dense(what the mean token reads from all tokens), tokens = [mean, pixels] + positions."""
        if self.num_head_channels is None:
            raise ValueError("pool 'attention' needs num_head_channels, got None")
        h = self._normalized(outputs[-1])
        batch, height, width, channels = h.shape
        h = h.reshape(batch, height * width, channels)
        h = jnp.concatenate([h.mean(axis=1, keepdims=True), h], axis=1)
        start = nn.initializers.normal(channels**-0.5)
        h = h + self.param("pool_positions", start, (h.shape[1], channels), jnp.float32)[None]
        q, k, v = (Dense(channels, name=f"pool_{name}")(h) for name in ("query", "key", "value"))
        h = attend(q[:, :1], k, v, self.heads(channels, self.num_heads))[:, 0]
        return Dense(self.out_channels, name="logits")(h)

    def spatial(self, outputs: list[jax.Array]) -> jax.Array:
        """dense(relu(dense(means of every output)))."""
        return Dense(self.out_channels, name="logits")(nn.relu(self._features(outputs)))

    def spatial_v2(self, outputs: list[jax.Array]) -> jax.Array:
        """dense(silu(norm(dense(means of every output))))."""
        h = GroupNorm(self.num_groups, self.norm_eps, name="norm_hidden")(self._features(outputs))
        return Dense(self.out_channels, name="logits")(nn.silu(h))

    def _normalized(self, h: jax.Array) -> jax.Array:
        return nn.silu(GroupNorm(self.num_groups, self.norm_eps, name="norm_out")(h))

    def _features(self, outputs: list[jax.Array]) -> jax.Array:
        means = jnp.concatenate([h.mean(axis=(1, 2)) for h in outputs], axis=-1)
        return Dense(HIDDEN, name="hidden")(means)


POOLS: dict[str, Callable[[Classifier, list[jax.Array]], jax.Array]] = {
    "attention": Classifier.attention,
    "adaptive": Classifier.adaptive,
    "spatial": Classifier.spatial,
    "spatial_v2": Classifier.spatial_v2,
}
