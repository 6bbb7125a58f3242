"""What a run can train, with which networks, and which settings of a configuration that does not read."""

from typing import Literal, NamedTuple

TaskName = Literal["diffusion", "classifier", "autoencoder"]


class Reads(NamedTuple):
    """Of a task: its networks, the one by default first, and the settings, or whole sections, that it leaves unread."""

    networks: tuple[str, ...]
    unread: tuple[str, ...] = ()

    def leaves(self, setting: str) -> bool:
        """Whether this one, "sample.num_steps", is among the unread."""
        return any(setting == name or setting.startswith(f"{name}.") for name in self.unread)


OF_FIRST_STAGE = ("reconstruction", "adversary")
TASKS: dict[str, Reads] = {
    "diffusion": Reads(("unet", "dit", "uvit"), OF_FIRST_STAGE),
    "classifier": Reads(
        ("classifier",),
        (
            *("objective.loss", "objective.prediction", "objective.variance", "objective.vlb_weight"),
            *("objective.weighting", "objective.weighting_arguments", "objective.sigma_data"),
            *("condition", "sample", "evaluate", "train.sample_every", "data.encode_with", *OF_FIRST_STAGE),
        ),
    ),
    "autoencoder": Reads(
        ("kl", "vq", "fsq"),
        (
            *("schedule", "objective", "condition", "evaluate"),
            *("sample.sampler", "sample.num_steps", "sample.clip", "data.encode_with"),
        ),
    ),
}
