"""LeRobot's base classes as its version 0.6 documents them, for where it is not installed (it wants Python 3.12).

    with monkeypatch.context() as patch:
        stand_in(patch)      # `import lerobot.cameras.camera` and the others then give these

Only what our plugins meet is here: names, signatures, abstract methods and the registry of kinds; no camera, no model.
"""

from __future__ import annotations

import abc
import sys
import types
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch


class Registry:
    """draccus's ChoiceRegistry: subclasses by name."""

    @classmethod
    def register_subclass(cls, name: str):
        def keep(subclass: type) -> type:
            cls._kinds[name] = subclass
            return subclass

        return keep

    @classmethod
    def get_choice_class(cls, name: str) -> type:
        return cls._kinds[name]

    @property
    def type(self) -> str:
        return next(name for name, kind in self._kinds.items() if kind is type(self))


class DeviceNotConnectedError(ConnectionError):
    pass


class DeviceAlreadyConnectedError(ConnectionError):
    pass


@dataclass(kw_only=True)
class CameraConfig(Registry, abc.ABC):
    _kinds = {}  # noqa: RUF012

    fps: int | None = None
    width: int | None = None
    height: int | None = None


class Camera(abc.ABC):
    def __init__(self, config: CameraConfig) -> None:
        self.fps, self.width, self.height = config.fps, config.width, config.height

    def __enter__(self):
        self.connect()
        return self

    def __exit__(self, *_: object) -> None:
        self.disconnect()

    @property
    @abc.abstractmethod
    def is_connected(self) -> bool: ...

    @staticmethod
    @abc.abstractmethod
    def find_cameras() -> list[dict[str, Any]]: ...

    @abc.abstractmethod
    def connect(self, warmup: bool = True) -> None: ...

    @abc.abstractmethod
    def read(self): ...

    @abc.abstractmethod
    def async_read(self, timeout_ms: float = ...): ...

    @abc.abstractmethod
    def disconnect(self) -> None: ...


@dataclass
class RewardModelConfig(Registry, abc.ABC):
    _kinds = {}  # noqa: RUF012

    input_features: dict[str, Any] = field(default_factory=dict)
    output_features: dict[str, Any] = field(default_factory=dict)
    device: str | None = None
    pretrained_path: str | None = None

    def __post_init__(self) -> None:
        self.device = self.device or "cpu"


class PreTrainedRewardModel(torch.nn.Module, abc.ABC):
    config_class = None
    name = None

    def __init__(self, config: RewardModelConfig, *_: Any, **__: Any) -> None:
        super().__init__()
        if not isinstance(config, RewardModelConfig):
            raise ValueError("config should be a RewardModelConfig")
        self.config = config

    def __init_subclass__(cls, **given: Any) -> None:
        super().__init_subclass__(**given)
        if not cls.config_class or not cls.name:
            raise TypeError(f"Class {cls.__name__} must define 'config_class' and 'name'")

    @abc.abstractmethod
    def compute_reward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor: ...


class AddBatchDimensionProcessorStep:
    pass


@dataclass
class DeviceProcessorStep:
    device: str = "cpu"


class PolicyProcessorPipeline(dict):
    """Its generic form is written `PolicyProcessorPipeline[A, B](steps=…, name=…)`."""


MODULES = {
    "lerobot": (),
    "lerobot.cameras": (),
    "lerobot.cameras.camera": (Camera,),
    "lerobot.cameras.configs": (CameraConfig,),
    "lerobot.utils": (),
    "lerobot.utils.errors": (DeviceNotConnectedError, DeviceAlreadyConnectedError),
    "lerobot.configs": (),
    "lerobot.configs.rewards": (RewardModelConfig,),
    "lerobot.rewards": (),
    "lerobot.rewards.pretrained": (PreTrainedRewardModel,),
    "lerobot.processor": (AddBatchDimensionProcessorStep, DeviceProcessorStep, PolicyProcessorPipeline),
}


def stand_in(patch: pytest.MonkeyPatch) -> None:
    """Let `lerobot` be these classes while the patch lasts."""
    for name, members in MODULES.items():
        module = types.ModuleType(name)
        for member in members:
            setattr(module, member.__name__, member)
        patch.setitem(sys.modules, name, module)
    sys.modules["lerobot.processor"].PolicyAction = torch.Tensor
    sys.modules["lerobot.processor"].policy_action_to_transition = lambda action: {"action": action}
