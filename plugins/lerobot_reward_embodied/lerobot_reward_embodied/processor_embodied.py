"""What LeRobot does to a batch before the model and to a number after it: a row gets its own dimension, and a device.

The encoder takes pictures as the camera gave them, so nothing is normalised.
"""

from __future__ import annotations

from typing import Any

from lerobot.processor import (
    AddBatchDimensionProcessorStep,
    DeviceProcessorStep,
    PolicyAction,
    PolicyProcessorPipeline,
    policy_action_to_transition,
)

from lerobot_reward_embodied.configuration_embodied import EmbodiedConfig

NAMES = ("policy_preprocessor", "policy_postprocessor")  # LeRobot's, of the files that they are saved as


def make_embodied_pre_post_processors(
    config: EmbodiedConfig, dataset_stats: dict[str, dict[str, Any]] | None = None
) -> tuple[
    PolicyProcessorPipeline[dict[str, Any], dict[str, Any]], PolicyProcessorPipeline[PolicyAction, PolicyAction]
]:
    """The two pipelines, by the name that LeRobot looks for.

    Args:
        config: its device is used.
        dataset_stats: not used; nothing is normalised.
    """
    steps = [AddBatchDimensionProcessorStep(), DeviceProcessorStep(device=config.device or "cpu")]
    before, after = NAMES
    return (
        PolicyProcessorPipeline[dict[str, Any], dict[str, Any]](steps=steps, name=before),
        PolicyProcessorPipeline(steps=[], name=after, to_transition=policy_action_to_transition),
    )
