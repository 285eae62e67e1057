"""Rewards of many worlds at once, where their frames are: one encode a step, and nothing goes through the CPU.

For worlds that a GPU steps and renders together (mjlab, ManiSkill, Isaac Lab): torch alone, and no waiting for the
device. Every world has its own episode, memory and reset.

Shape letters: E worlds; V views; H, W image.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from rewards.core import Features, Scorer, unchecked

Frames = UInt8[Tensor, "E H W 3"] | Mapping[str, UInt8[Tensor, "E H W 3"]]
Signals = Mapping[str, Float[Tensor, " E"]]
OURS = "rewards."  # modules whose objects are moved to a device with what they hold


class _Said(NamedTuple):
    """What the heads say of each world's newest row, (E,), and what they need of it for those after."""

    potential: Tensor
    memories: dict[str, Any]


class VectorScorer:
    """Rewards of E worlds, step by step, on the device of their frames.

    A world whose episode ends in a step shows its next episode's first frame after it, as worlds do that reset
    themselves; what it showed before the reset is given as `final`, where it is known. Without it, the last potential
    is taken to stay. Worlds that somebody else resets (`autoreset=False`) show the episode's last frame, and are
    unknown until `reset` tells what they show then, or their next scored step.

    Every `every`-th step is scored. In between, each world's potential is taken to stay: nothing is encoded. A world
    that is reset in between has no potential until the next scored step, and is paid nothing until then.

    Heads must be scored row by row (`Scorer.advances`) on features alone: those that read whole episodes, or images
    (keypoints, chat models), have no place on the device. A potential that is not finite is not looked for in `step`,
    which would wait for the device: ask `check` now and then.

    Args:
        scorer: its encoder must be on the frames' device; the heads are copied there at the first frames.
        worlds: E.
        every: score every so many steps, ≥ 1.
        autoreset: whether a world that is done shows its next episode's first frame.

    Raises:
        ValueError: a scorer that cannot be scored so, or a number out of range.
    """

    def __init__(self, scorer: Scorer, worlds: int, *, every: int = 1, autoreset: bool = True) -> None:
        if worlds < 1 or every < 1:
            raise ValueError(f"VectorScorer: worlds and every must be at least 1; got {worlds} and {every}.")
        if not scorer.advances or scorer.frames_read != "none":
            names = [
                name
                for name, head in scorer.heads.items()
                if getattr(head, "frames_read", "none") != "none"
                or not (getattr(head, "pointwise", False) or getattr(head, "advances", False))
            ]
            raise ValueError(
                f"VectorScorer: heads must be scored row by row, on features alone; {', '.join(names)} read images or "
                "whole episodes. Score their rollouts afterwards, with Scorer.rewards."
            )
        self.scorer, self.worlds, self.every, self.autoreset = scorer, worlds, every, autoreset
        self._steps = 0
        self._device: torch.device | None = None
        self._said: _Said | None = None
        self._unknown = torch.ones(0, dtype=torch.bool)  # (E,) worlds without a potential of this episode yet
        self._bad = torch.zeros(0, dtype=torch.bool)  # (), whether a potential was not finite

    @property
    def unknown(self) -> Bool[Tensor, " E"]:
        """Worlds whose episode has no scored frame yet; empty before the first frames."""
        return self._unknown

    @property
    def potential(self) -> Float[Tensor, " E"]:
        """Each world's potential at its last scored frame; NaN where its episode has none yet."""
        if self._said is None:
            raise ValueError("VectorScorer.potential: there must be a scored frame first; call reset or step.")
        return self._said.potential.masked_fill(self._unknown, torch.nan)

    @torch.no_grad()
    def reset(self, frames: Frames, worlds: Bool[Tensor, " E"] | None = None, signals: Signals | None = None) -> None:
        """Begin episodes at what the worlds show now.

        Args:
            frames: (E, H, W, 3) uint8, or such by view, the first being the main one.
            worlds: which of them begin; None: all. Frames of others are not read.
            signals: name -> (E,) readings, for heads that ask for them.
        """
        views = self._views(frames)
        features = self._features(views, signals)
        with unchecked():
            first = self._ahead(features, None)
        if worlds is None or self._said is None:
            self._said = first
            self._unknown = torch.zeros_like(self._unknown) if worlds is None else ~worlds
        else:
            self._said = self._merged(worlds, first, self._said)
            self._unknown = self._unknown & ~worlds
        self._note(first.potential)

    @torch.no_grad()
    def step(
        self,
        frames: Frames,
        done: Bool[Tensor, " E"],
        *,
        terminated: Bool[Tensor, " E"] | None = None,
        final: Frames | None = None,
        signals: Signals | None = None,
        final_signals: Signals | None = None,
    ) -> Float[Tensor, " E"]:
        """The reward of the action that each world has just taken; 0 where its episode had no scored frame yet.

        Args:
            frames: (E, H, W, 3) uint8, or such by view: what the worlds show now; where `done`, after their reset if
                they reset themselves.
            done: whose episode ended with the action, for whatever reason.
            terminated: where the task itself ended; a time limit is not a termination. None: nowhere.
            final: what the worlds showed before a reset; only those that are `done` are read. Give it in steps in
                which one is: it is encoded as well. None: unknown.
            signals: name -> (E,) readings that belong to `frames`.
            final_signals: name -> (E,) readings that belong to `final`; given where both `final` and `signals` are.

        Raises:
            ValueError: another number of worlds, another device, or readings of one of `frames` and `final` alone.
        """
        if (final_signals is None) != (final is None or signals is None):
            given = {"final": final, "signals": signals, "final_signals": final_signals}
            raise ValueError(
                "VectorScorer: final_signals must be given where both final and signals are, and only there; got "
                f"{', '.join(name for name, each in given.items() if each is not None)}."
            )
        views = self._views(frames)
        self._steps += 1
        if self._said is None:
            self._said = _Said(torch.zeros(self.worlds, device=self._device), {})
        before, known = self._said.potential, ~self._unknown
        ended = torch.zeros_like(done) if terminated is None else terminated
        if self._steps % self.every:
            rewards = self.scorer.shaping(before, before, ended).masked_fill(~known, 0.0)
            self._unknown = self._unknown | done
            return rewards
        if final is None:
            features, last = self._features(views, signals), None
        else:
            seen = self._views(final)
            both = self._features({name: torch.cat([view, seen[name]]) for name, view in views.items()}, None)
            features, last = self._halves(both, signals, final_signals)
        with unchecked():
            first = self._ahead(features, None)
            after, following, end = first, first, before
            if self._said.memories or self.scorer.pointwise:
                memories = self._said.memories if not self.scorer.pointwise else None
                following = first if self.scorer.pointwise else self._ahead(features, memories)
                end = before if last is None else self._ahead(last, memories).potential
                after = self._merged(done | self._unknown, first, following)
            now = torch.where(done, end, following.potential) if self.autoreset else following.potential
            rewards = self.scorer.shaping(before, now, ended).masked_fill(~known, 0.0)
        self._note(now.masked_fill(~known, 0.0), after.potential)
        self._said, self._unknown = after, torch.zeros_like(done) if self.autoreset else done.clone()
        return rewards

    def check(self) -> None:
        """Wait for the device, and see that every potential so far was finite.

        Raises:
            FloatingPointError: one was not.
        """
        if self._bad.numel() and bool(self._bad):
            raise FloatingPointError("VectorScorer: a head or the combination gave NaN or infinity.")

    # Inside -------------------------------------------------------------------------------------------------

    def _views(self, frames: Frames) -> dict[str, Tensor]:
        views = {"main": frames} if isinstance(frames, Tensor) else dict(frames)
        for name, view in views.items():
            if len(view) != self.worlds or view.ndim != 4 or view.dtype != torch.uint8:
                got = f"{str(view.dtype).removeprefix('torch.')} {tuple(view.shape)}"
                raise ValueError(f"VectorScorer: frames must be uint8 ({self.worlds}, H, W, 3); got {got} of {name}.")
        device = next(iter(views.values())).device
        if self._device is None:
            self._device = device
            self.scorer = on_device(self.scorer, device, keep=self.scorer.encoder)
            self._unknown = torch.ones(self.worlds, dtype=torch.bool, device=device)
            self._bad = torch.zeros((), dtype=torch.bool, device=device)
        if device != self._device:
            raise ValueError(f"VectorScorer: frames must stay on {self._device}; got {device}.")
        return views

    def _features(self, views: Mapping[str, Tensor], signals: Signals | None) -> Features:
        """(E, 1) of every view; one call of the encoder, whatever their number."""
        encoded = self.scorer.encode(torch.cat(list(views.values())) if len(views) > 1 else next(iter(views.values())))
        each = encoded.float().chunk(len(views))
        return Features(
            views={name: rows[:, None] for name, rows in zip(views, each, strict=True)},
            signals={name: values[:, None] for name, values in (signals or {}).items()},
        )

    def _halves(
        self, features: Features, signals: Signals | None, final_signals: Signals | None
    ) -> tuple[Features, Features]:
        """Features of E worlds now, and of the same before a reset."""
        now, last = (
            Features(
                views={name: rows[part] for name, rows in features.views.items()},
                signals={name: values[:, None] for name, values in (read or {}).items()},
            )
            for part, read in ((slice(0, self.worlds), signals), (slice(self.worlds, None), final_signals))
        )
        return now, last

    def _ahead(self, features: Features, memories: Mapping[str, Any] | None) -> _Said:
        potentials, kept = self.scorer.advance(features, memories)
        return _Said(self.scorer.combined(potentials, features)[:, 0].float(), kept)

    def _merged(self, worlds: Tensor, first: _Said, other: _Said) -> _Said:
        """`first` of these worlds, `other` of the rest."""
        memories = {name: merged(worlds, memory, other.memories[name], name) for name, memory in first.memories.items()}
        return _Said(torch.where(worlds, first.potential, other.potential), memories)

    def _note(self, *potentials: Tensor) -> None:
        for each in potentials:
            self._bad = self._bad | ~torch.isfinite(each).all()


def merged(worlds: Bool[Tensor, " E"], new: Any, old: Any, name: str) -> Any:
    """A head's memory that is `new` in these worlds and `old` in the rest; every tensor in it is (E, …).

    Objects that are neither tensors nor made of them have a method `merged(worlds, old)`.

    Args:
        name: of the head, for errors.

    Raises:
        ValueError: a memory that is not one of worlds side by side.
    """
    if isinstance(new, Tensor) and isinstance(old, Tensor):
        if new.shape != old.shape or len(new) != len(worlds):
            raise ValueError(
                f"VectorScorer: head {name} must remember as much of a new episode as of an old one, world by world; "
                f"its memory is {tuple(new.shape)} and {tuple(old.shape)}. Score its rollouts with Scorer.rewards."
            )
        return torch.where(worlds.view(-1, *[1] * (new.ndim - 1)), new, old)
    if new is None and old is None:
        return None
    own: Any = new
    if hasattr(own, "merged"):
        return own.merged(worlds, old)
    if isinstance(new, Mapping):
        return {key: merged(worlds, value, old[key], name) for key, value in cast("Mapping[str, Any]", new).items()}
    if isinstance(new, tuple | list) and len(cast("Sequence[Any]", new)) == len(old):
        parts = [merged(worlds, *pair, name) for pair in zip(cast("Sequence[Any]", new), old, strict=True)]
        return type(new)(*parts) if hasattr(new, "_fields") else type(new)(parts)
    raise ValueError(
        f"VectorScorer: head {name} must remember tensors, world by world; got {type(new).__name__}. Score its "
        "rollouts with Scorer.rewards."
    )


def on_device(value: Any, device: torch.device, keep: Any = None) -> Any:
    """A copy of a head, or of anything of ours, all of whose tensors are on a device; `keep` in it stays itself.

    Of a scorer only the heads are copied: combinations hold no tensors, and `LagrangianConstraints` learns.

    Args:
        value: a head, a scorer, a tensor, or what holds some.
    """
    return _moved(value, device, {id(keep): keep})


def _moved(value: Any, device: torch.device, made: dict[int, Any]) -> Any:
    if id(value) in made:
        return made[id(value)]
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Scorer):
        return replace(value, heads=_moved(value.heads, device, made))
    if isinstance(value, nn.Module):
        made[id(value)] = copy.deepcopy(value).to(device)
        return made[id(value)]
    if isinstance(value, Mapping):
        return {key: _moved(each, device, made) for key, each in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, tuple | list):
        parts = [_moved(each, device, made) for each in cast("Sequence[Any]", value)]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if type(value).__module__.startswith(OURS) and hasattr(value, "__dict__") and not isinstance(value, type):
        twin = made[id(value)] = copy.copy(value)
        for key, each in vars(value).items():
            object.__setattr__(twin, key, _moved(each, device, made))
        return twin
    return value
