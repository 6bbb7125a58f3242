"""The conventions in which networks differ, by name: functions config -> config as `search` takes them.

The letters are those of the parity checklist: N networks. A convention is a setting of the network's own config.json
with another value; one that a network has not, or that its weights do not fit, is passed over. The others of the
checklist (order of skips and channels, forms of GELU, initial values) are no settings: networks that have them are
classes of their own.
"""

from collections.abc import Callable, Mapping
from typing import Any

Config = Mapping[str, Any]


def setting(**fields: Any) -> Callable[[Config], Config | None]:
    """The config with these values, where it has others; None where it has no such settings."""

    def change(config: Config) -> Config | None:
        if not fields.keys() <= config.keys() or all(config[name] == value for name, value in fields.items()):
            return None
        return {**config, **fields}

    return change


def _exchanged(first: str, second: str) -> Callable[[Config], Config | None]:
    return lambda config: (
        setting(**{first: config[second], second: config[first]})(config) if {first, second} <= config.keys() else None
    )


CONVENTIONS: dict[str, Callable[[Config], Config | None]] = {
    **{f"N1 norm_eps={value}": setting(norm_eps=value) for value in (1e-6, 1e-5)},
    **{f"N2 attention_head_dim={value}": setting(attention_head_dim=value) for value in (None, 1, 2, 4, 8)},
    "N2 num_attention_heads and attention_head_dim exchanged": _exchanged("num_attention_heads", "attention_head_dim"),
    **{f"N2 use_new_attention_order={value}": setting(use_new_attention_order=value) for value in (True, False)},
    **{f"N3 flip_sin_to_cos={value}": setting(flip_sin_to_cos=value) for value in (True, False)},
    **{f"N3 freq_shift={value}": setting(freq_shift=value) for value in (0, 1)},
    **{
        f"N4 resnet_time_scale_shift={value}": setting(resnet_time_scale_shift=value)
        for value in ("default", "scale_shift")
    },
    **{f"N4 use_scale_shift_norm={value}": setting(use_scale_shift_norm=value) for value in (True, False)},
    **{f"N5 downsample_padding={value}": setting(downsample_padding=value) for value in (0, 1)},
}
