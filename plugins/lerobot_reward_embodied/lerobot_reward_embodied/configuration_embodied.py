"""What a person sets of the reward model: type `embodied`."""

from __future__ import annotations

from dataclasses import dataclass, field

from lerobot.configs.rewards import RewardModelConfig

ENCODERS = ("embedded", "open_clip", "transformers")


@RewardModelConfig.register_subclass("embodied")
@dataclass
class EmbodiedConfig(RewardModelConfig):
    """A reward by name. It may come with somebody's checkpoint, so it is data: no setting reaches code or a network of
    its own; an encoder's weights come from the hub by their name, as LeRobot's own do.

    Attributes:
        reward: of `embodied list what=rewards`: one that needs a sentence, or a fitted head (`model`).
        goal: a sentence that is true of success, or for process rewards the task; None: each row's `task`.
        model: a folder that `embodied fit` wrote; None: none.
        encoder: embedded, open_clip or transformers.
        encoder_model: of open_clip (NAME:WEIGHTS) or transformers (a hub id or a folder); None: that encoder's default.
        image_keys: the batch's cameras that are read, the main one first; empty: all that the batch has, by name.
    """

    reward: str = "clip"
    goal: str | None = None
    model: str | None = None
    encoder: str = "embedded"
    encoder_model: str | None = None
    image_keys: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.encoder not in ENCODERS:
            raise ValueError(f"EmbodiedConfig: encoder must be one of {', '.join(ENCODERS)}; got {self.encoder!r}.")
        if self.encoder_model is not None and self.encoder == "embedded":
            raise ValueError("EmbodiedConfig: encoder_model is of open_clip or transformers; encoder is embedded.")
