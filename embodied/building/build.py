"""From a config to an object: `_target_` names one of ours, the other keys are its constructor's arguments.

A config can come from anywhere (a checkpoint, a colleague), so only the exact names below are ever imported.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from embodied.errors import UserError, nearest

TARGETS: tuple[str, ...] = (
    "policies.rlpd.rlpd",
    "policies.imitation.imitation",
    "policies.residual.residual",
    "policies.calql.calql",
    "policies.drqv2.drqv2",
    "policies.drm.drm",
    "policies.tdmpc2.tdmpc2",
    "policies.modem.modem",
    "policies.repo.repo",
    "policies.infopower.infopower",
    "policies.sb3.sac",
    "policies.sb3.td3",
    "policies.sb3.dqn",
    "policies.sb3.ppo",
    "rewards.clip_goal.clip_scorer",
    "rewards.clip_goal.contrast_scorer",
    "rewards.clip_goal.softmax_scorer",
    "rewards.clip_goal.calibrated_scorer",
    "rewards.clip_goal.synthesis_scorer",
    "rewards.demonstration.demonstration_scorer",
    "rewards.xirl.xirl_scorer",
    "rewards.rapl.rapl_scorer",
    "rewards.compose.composed_scorer",
    "rewards.combine.WeightedSum",
    "rewards.combine.Product",
    "rewards.combine.LogSigmoidConjunction",
    "rewards.combine.PreferenceAsReward",
    "rewards.combine.LagrangianConstraints",
    "rewards.vlm_progress.grm_vlm_scorer",
    "rewards.vlm_progress.topreward_scorer",
    "rewards.vlm_progress.gvl_scorer",
    "rewards.keypoint.keypoint_scorer",
    "rewards.goal_image.goal_image_scorer",
    "rewards.preference.preference_scorer",
    "rewards.pretrained.pretrained_scorer",
    "rewards.process.process_scorer",
    "rewards.success.success_scorer",
    "rewards.vpl.vpl_scorer",
    "rewards.encoders.embedded_encoder",
    "rewards.encoders.OpenCLIPEncoder",
    "rewards.encoders.TransformersEncoder",
    "embodied.serving.remote.RemoteEncoder",
    "embodied.serving.remote.remote_scorer",
)


def build(config: Mapping[str, Any] | DictConfig, **call_time: Any) -> Any:
    """Construct what a config names.

    Args:
        config: `_target_` and keyword arguments; mappings and lists inside that hold a `_target_` are built first.
        call_time: arguments that only the caller knows (spaces, a device, an encoder), for the outermost object.

    Returns:
        The object; the config is not changed.

    Raises:
        UserError: no `_target_`, one that is not in `TARGETS`, an argument it does not take, or one left out.
    """
    plain: Any = (
        OmegaConf.to_container(config, resolve=True, throw_on_missing=True) if OmegaConf.is_config(config) else config
    )
    arguments = {str(key): _inner(value) for key, value in plain.items() if key != "_target_"}
    target = plain.get("_target_")
    factory = locate(target)
    parameters = inspect.signature(factory).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for key in arguments:
        if key not in parameters and not takes_any:
            raise UserError(f"{target}: unknown argument {key!r}. {nearest(key, parameters)}")
    arguments |= call_time
    required = (
        n for n, p in parameters.items() if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    )
    if missing := [name for name in required if name not in arguments]:
        raise UserError(f"{target}: {', '.join(missing)} must be given.")
    try:
        return factory(**arguments)
    except FileNotFoundError as error:  # in Python the argument is `model`, and a verb's setting has its group
        group = "encoder" if target.startswith("rewards.encoders.") else "reward.vlm" if "vlm" in parameters else None
        if group is None:
            raise
        raise FileNotFoundError(str(error).replace("give model=", f"give {group}.model=")) from error


def locate(target: Any) -> Any:
    """The class or function that a `_target_` names, imported now and not before.

    Raises:
        UserError: it is not in `TARGETS`.
    """
    if target not in TARGETS:
        raise UserError(
            f"_target_ must be one of ours (embodied/building/build.py); got {target!r}. "
            f"{nearest(str(target), TARGETS)}"
        )
    module, _, name = target.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _inner(value: Any) -> Any:
    if isinstance(value, Mapping):
        return build(value) if "_target_" in value else {key: _inner(item) for key, item in value.items()}
    return [_inner(item) for item in value] if isinstance(value, list) else value
