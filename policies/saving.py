"""A learner's weights, optimisers and generators as tensors and JSON values, and back, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

State = tuple[dict[str, Tensor], dict[str, Any]]
Part = nn.Module | torch.optim.Optimizer | torch.Generator | Tensor


def pack(parts: Mapping[str, Part]) -> dict[str, Tensor]:
    """A copy of every number in these, by name, on the CPU.

    Args:
        parts: name -> network, optimiser, generator or tensor.
    """
    out = {}
    for name, part in parts.items():
        for key, tensor in _tensors(part).items():
            out[f"{name}/{key}"] = tensor.detach().cpu().clone().contiguous()
    return out


@torch.no_grad()
def unpack(who: str, parts: Mapping[str, Part], tensors: Mapping[str, Tensor]) -> None:
    """Undo of `pack`, into parts made with the same settings.

    Args:
        who: the learner, for errors.
        parts: are filled.
        tensors: of `pack`.

    Raises:
        ValueError: there are others, or of other shapes; nothing was changed.
    """
    wanted, needed = {}, set()
    for name, part in parts.items():
        shapes = {f"{name}/{key}": tensor.shape for key, tensor in _tensors(part, full=True).items()}
        wanted |= shapes
        needed |= set() if isinstance(part, torch.optim.Optimizer) else set(shapes)  # which may not have begun
    wrong = [key for key, tensor in tensors.items() if key not in wanted or tensor.shape != wanted[key]]
    for key in [*sorted(needed - set(tensors)), *wrong]:
        expected = tuple(wanted[key]) if key in wanted else "absent"
        got = tuple(tensors[key].shape) if key in tensors else "none"
        raise ValueError(f"{who}: {key} must be {expected}; got {got}. Make the learner with its former settings.")
    for name, part in parts.items():
        own = {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}
        if isinstance(part, torch.Generator):
            part.set_state(own["state"])
        elif isinstance(part, torch.optim.Optimizer):
            _restore(part, own)
        elif isinstance(part, nn.Module):
            part.load_state_dict(own)
        else:
            part.copy_(own["value"])


def _tensors(part: Part, *, full: bool = False) -> dict[str, Tensor]:
    if isinstance(part, nn.Module):
        return dict(part.state_dict())
    if isinstance(part, torch.Generator):
        return {"state": part.get_state()}
    if isinstance(part, Tensor):
        return {"value": part}
    weights = [weight for group in part.param_groups for weight in group["params"]]
    if full:
        out = {}
        for k, weight in enumerate(weights):
            out |= {f"{k}/step": torch.zeros(()), f"{k}/exp_avg": weight, f"{k}/exp_avg_sq": weight}
        return out
    return {
        f"{k}/{key}": value for k, weight in enumerate(weights) for key, value in part.state.get(weight, {}).items()
    }


def _restore(optimiser: torch.optim.Optimizer, own: Mapping[str, Tensor]) -> None:
    """Adam's moments; weights that it has not moved yet have none."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in own.items():
        k, name = key.split("/")
        state.setdefault(int(k), {})[name] = value.clone()
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
