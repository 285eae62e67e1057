"""Rewards of embodied-rewards as a LeRobot reward model; importing this registers the type `embodied`."""

from lerobot_reward_embodied.configuration_embodied import EmbodiedConfig

__all__ = ["EmbodiedConfig"]
