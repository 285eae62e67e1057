"""A pretrained vision-language model as the body of a policy that is fine-tuned: what is asked for, and its errors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from omegaconf import DictConfig

from embodied.datasets.maps import PictureEye
from embodied.errors import UserError, nearest
from policies.vla.families import FAMILIES, natural_size
from policies.vla.sources import (
    ATTENTION,
    PRECISIONS,
    TRAIN,
    Chosen,
    Prompts,
    check_size,
    fetched,
    lora_package,
    read_config,
)
from rewards.encoders.loading import import_transformers

RATE = 5e-4  # OFT's


def check(config: DictConfig) -> None:
    """Refuse settings that cannot be, before anything is read.

    Raises:
        UserError: so.
    """
    policy = config.policy
    for key, known in (("train", TRAIN), ("precision", ("auto", *PRECISIONS)), ("attention", ATTENTION)):
        if policy[key] not in known:
            raise UserError(f"policy.{key} must be one of {', '.join(known)}; got {policy[key]!r}. "
                            f"{nearest(str(policy[key]), known)}")  # fmt: skip
    if policy.lora.rank < 1 or not policy.lora.alpha > 0:
        got = f"{policy.lora.rank} and {policy.lora.alpha}"
        raise UserError(f"policy.lora must have a rank of at least 1 and an alpha above 0; got {got}.")


def device_of(config: DictConfig) -> torch.device:
    """Where a config's policy is."""
    name = str(config.device)
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def chosen(config: DictConfig, device: torch.device) -> Chosen:
    """The backbone of a config; what it leaves open is chosen here.

    Raises:
        UserError: it is not there, or reads no pictures.
    """
    policy = config.policy
    with explained():
        folder = fetched(str(policy.backbone))
        about = read_config(folder, str(policy.backbone))
        size = int(policy.size or natural_size(about))
        check_size(about, size, str(policy.backbone))
        if policy.train == "lora":
            lora_package()
    precision = str(policy.precision)
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" else "fp32"
    return Chosen(
        source=str(policy.backbone), train=str(policy.train), rank=int(policy.lora.rank),
        alpha=float(policy.lora.alpha), film=bool(policy.film), precision=precision, attention=str(policy.attention),
        checkpointing=bool(policy.checkpointing), size=size,
        augment=bool(policy.augment),
    )  # fmt: skip


def eyes(cameras: Sequence[str], size: int) -> dict[str, Any]:
    """What turns each camera's frames into pictures."""
    return {name: PictureEye(size) for name in cameras}


def prompts(source: str) -> Prompts:
    """What turns sentences into tokens of a backbone."""
    with explained():
        folder = fetched(source)
        return Prompts(folder, FAMILIES[read_config(folder, source).model_type])


@contextmanager
def explained() -> Iterator[None]:
    """Errors of a backbone as a person's: not there, not of a known kind, a package that is missing, no memory.

    Raises:
        UserError: so.
    """
    import_transformers()
    try:
        yield
    except (FileNotFoundError, ModuleNotFoundError, ValueError) as error:
        told = str(error)
        if not told.startswith("Backbone: "):
            raise
        raise UserError(told.replace("Backbone: source", "policy.backbone").replace("Backbone: ", "policy.backbone: ")
                        .replace("policy.backbone: size", "policy.size")) from error  # fmt: skip


@contextmanager
def within_memory(config: DictConfig) -> Iterator[None]:
    """Out of memory as something that a person can mend.

    Raises:
        UserError: so.
    """
    try:
        yield
    except (torch.OutOfMemoryError, RuntimeError, MemoryError) as error:
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "allocate memory" not in str(error):
            raise
        less = [f"batch_size={max(int(config.batch_size) // 2, 1)}"]
        if config.policy.backbone is not None:
            less += ["policy.checkpointing=true", "policy.precision=bf16", "policy.train=lora", "policy.size=…"]
        raise UserError(
            f"there is not enough memory for batch_size={config.batch_size}. Try {', '.join(less)}. "
            "What was learned so far is kept: add resume=true."
        ) from error
