"""DDPM's U-Net in PyTorch, for machines with PyTorch but without diffusers.

It computes what UNet2DModel of diffusers does with such a configuration, and has its names of parameters, so the same
weights go into both. torch is an argument: nothing here needs it to be installed, or JAX.

Source: Ho et al. 2020 (arXiv:2006.11239), appendix B.
"""

import math
from collections.abc import Mapping
from typing import Any

# What a configuration must say: with these the network is DDPM's.
PLAIN = {
    "act_fn": "silu",
    "add_attention": True,
    "attention_head_dim": None,
    "attn_norm_num_groups": None,
    "center_input_sample": False,
    "class_embed_type": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "num_class_embeds": None,
    "resnet_time_scale_shift": "default",
}
KINDS = {"DownBlock2D", "AttnDownBlock2D", "UpBlock2D", "AttnUpBlock2D"}


def unet(torch: Any, config: Mapping[str, Any]) -> Any:
    """net(x [B, C, H, W], t [B]) -> [B, C, H, W], with random weights.

    Args:
      torch: the module.
      config: as diffusers' UNet2DModel takes it.

    Raises:
      ValueError: lists the settings that only diffusers has.
    """
    other = {name: config[name] for name, value in PLAIN.items() if config[name] != value}
    other |= {name: config[name] for name in ("down_block_types", "up_block_types") if not KINDS >= set(config[name])}
    if other:
        raise ValueError(f"without diffusers only DDPM's network can be built in PyTorch, got {other}")
    nn, functional = torch.nn, torch.nn.functional
    first = config["block_out_channels"][0]

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv_in = nn.Conv2d(config["in_channels"], first, 3, padding=1)
            linear = {"linear_1": nn.Linear(first, 4 * first), "linear_2": nn.Linear(4 * first, 4 * first)}
            self.time_embedding = nn.ModuleDict(linear)
            down, self.mid_block, up = _levels(torch, config)
            self.down_blocks, self.up_blocks = nn.ModuleList(down), nn.ModuleList(up)
            self.conv_norm_out = nn.GroupNorm(config["norm_num_groups"], first, config["norm_eps"])
            self.conv_out = nn.Conv2d(first, config["out_channels"], 3, padding=1)

        def forward(self, x: Any, t: Any) -> Any:
            temb = _embedding(torch, t, first).to(x.dtype)
            temb = self.time_embedding["linear_1"](temb)
            temb = self.time_embedding["linear_2"](functional.silu(temb))
            skips = [self.conv_in(x)]
            for block in self.down_blocks:
                for res, attention in zip(block.resnets, block.attentions, strict=True):
                    skips.append(attention(res(skips[-1], temb)))
                for sampler in block.downsamplers:
                    skips.append(sampler["conv"](functional.pad(skips[-1], (0, 1, 0, 1))))
            h = self.mid_block.resnets[0](skips[-1], temb)
            h = self.mid_block.resnets[1](self.mid_block.attentions[0](h), temb)
            for block in self.up_blocks:
                for res, attention in zip(block.resnets, block.attentions, strict=True):
                    h = attention(res(torch.cat([h, skips.pop()], dim=1), temb))
                for sampler in block.upsamplers:
                    h = sampler["conv"](functional.interpolate(h, scale_factor=2.0, mode="nearest"))
            return self.conv_out(functional.silu(self.conv_norm_out(h)))

    return Network()


def _embedding(torch: Any, t: Any, dim: int) -> Any:
    """[sin(t w_i), cos(t w_i)], w_i = 10000^(-i / (dim / 2 - 1))."""
    powers = torch.arange(dim // 2, dtype=torch.float32, device=t.device) / (dim // 2 - 1)
    angles = t.float()[:, None] * torch.exp(-math.log(10000) * powers)[None]
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def _levels(torch: Any, config: Mapping[str, Any]) -> tuple[list[Any], Any, list[Any]]:
    """The way down, the middle and the way up."""
    nn, widths, n = torch.nn, config["block_out_channels"], config["layers_per_block"]
    res_block, attention = _res_block(torch, config), _attention(torch, config)
    levels, last = range(len(widths)), len(widths) - 1
    attends = ["Attn" in kind for kind in config["down_block_types"]]

    def block(inputs: list[int], width: int, attending: bool, resampler: str, stride: int | None) -> Any:
        holder = nn.Module()
        holder.resnets = nn.ModuleList([res_block(channels, width) for channels in inputs])
        holder.attentions = nn.ModuleList([attention(width) if attending else nn.Identity() for _ in inputs])
        conv = {} if stride is None else {"conv": nn.Conv2d(width, width, 3, stride, padding=2 - stride)}
        setattr(holder, resampler, nn.ModuleList([nn.ModuleDict(conv)] if conv else []))
        return holder

    skips, width, down, up = [widths[0]], widths[0], [], []
    for level in levels:
        inputs = [width, *[widths[level]] * (n - 1)]
        width = widths[level]
        down.append(block(inputs, width, attends[level], "downsamplers", 2 if level < last else None))
        skips += [width] * (n + (level < last))
    middle = block([width, width], width, True, "downsamplers", None)
    middle.attentions = middle.attentions[:1]  # one, between the two
    for level in reversed(levels):
        inputs = [channels + skips.pop() for channels in [width, *[widths[level]] * n]]
        width = widths[level]
        up.append(block(inputs, width, attends[level], "upsamplers", 1 if level > 0 else None))
    return down, middle, up


def _res_block(torch: Any, config: Mapping[str, Any]) -> Any:
    nn, functional = torch.nn, torch.nn.functional
    groups, eps = config["norm_num_groups"], config["norm_eps"]

    class ResBlock(nn.Module):
        """shortcut(x) + conv(dropout(silu(norm(conv(silu(norm(x))) + linear(silu(temb))))))."""

        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.GroupNorm(groups, inputs, eps), nn.GroupNorm(groups, outputs, eps)
            self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
            self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
            self.time_emb_proj = nn.Linear(4 * config["block_out_channels"][0], outputs)
            self.dropout = nn.Dropout(config["dropout"])
            self.conv_shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

        def forward(self, x: Any, temb: Any) -> Any:
            h = self.conv1(functional.silu(self.norm1(x)))
            h = h + self.time_emb_proj(functional.silu(temb))[:, :, None, None]
            return self.conv_shortcut(x) + self.conv2(self.dropout(functional.silu(self.norm2(h))))

    return ResBlock


def _attention(torch: Any, config: Mapping[str, Any]) -> Any:
    nn = torch.nn
    attend = nn.functional.scaled_dot_product_attention

    class Attention(nn.Module):
        """x + out(softmax(q k^T / sqrt(C)) v), one head."""

        def __init__(self, width: int) -> None:
            super().__init__()
            self.group_norm = nn.GroupNorm(config["norm_num_groups"], width, config["norm_eps"])
            self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
            self.to_out = nn.ModuleList([nn.Linear(width, width)])

        def forward(self, x: Any) -> Any:
            h = self.group_norm(x).flatten(2).transpose(1, 2)
            h = attend(*(project(h)[:, None] for project in (self.to_q, self.to_k, self.to_v)))
            h = self.to_out[0](h[:, 0])
            return x + h.transpose(1, 2).reshape(x.shape)

    return Attention
