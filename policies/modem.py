"""MoDem-V2: a world model that begins from demonstrations and is trusted step by step, on TD-MPC2.

Hansen et al., MoDem, arXiv 2212.05698; Lancaster et al., MoDem-V2, arXiv 2309.14236. In this order:

    imitation    encoder and policies learn what demonstrations show; the target heads are then set to the heads
    seeding      imitation with noise acts; a burst of updates of the model alone, with encoder and policies held
    interaction  plans, around what the policies would do, with value heads that must agree; imitation hands over

Each is a switch: `pretraining=0`; `learning_starts`, `burst` and `warmup`; `demo_share_last=null` (no schedule of
demonstrations); `centre=plan first_std=2` (plans around the last plan, as MoDem's); `handover=null` (plans at once);
`ensemble=false critics=2 uncertainty=0` (one policy, no penalty); `imitation_weight=0` (policies by values alone).
Without demonstrations it is TD-MPC2 with the rest.

Departures. On TD-MPC2 instead of TD-MPC: two-hot heads, no encoder of targets that could lag behind imitation, uniform
sampling in place of priorities. One critic a policy, its target the lesser of itself and its neighbour, not two.
The hand-over is measured (`policies.handover`: whole episodes, the plans' share rising only while they earn no less
than imitation), or scheduled as in the source, a draw each step, whose planner plays alone when it counts from half way
on. Imitation's branch plays its action, where the source chooses among draws around it by their value. Policies that
have left imitation are still held to the demonstrations (`imitation_weight`), as the actor of `policies.rlpd` is: by
their values alone they are lost within a thousand updates, and plans are made around them.

Shape letters: E worlds, B windows, T steps, N policies, A action.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from policies.core import Batch, Memory, Obs, Pace, Rollout, Sampling, map_leaves
from policies.handover import IMITATION, LEARNED, HandOver, warn_of_failures_alone
from policies.latent import flatten
from policies.latent_losses import Wish, imitation
from policies.networks import adam
from policies.saving import State
from policies.settings import check, maker
from policies.tdmpc2 import TDMPC2
from policies.tdmpc2 import TDMPC2Settings as Base

HANDOVERS = ("measured", "schedule", None)


@dataclass(frozen=True, kw_only=True)
class MoDemSettings(Base):
    """What can be set, beside TD-MPC2's, some of which begin elsewhere here.

    Attributes:
        pretraining: updates of imitation before the first step; 0: no imitation and no hand-over.
        warmup: updates of the model alone, before encoder and policies leave imitation.
        imitation_weight: of the demonstrated actions' squared error in the policies' loss, beside values of range 1; 0:
            after the warm-up nothing holds the policies to the demonstrations, as in the source.
        demo_share_last: what the demonstrations' share of a batch goes to; None: it stays.
        demo_share_over: transitions that this takes.
        handover: from imitation to plans: "measured", by "schedule", or None: plans play from the warm-up's end.
        handover_over: transitions that the schedule takes, from `learning_starts` on.
        critics, ensemble, centre, first_std, policy_std, samples, policy_samples, iterations, uncertainty, noise, tau,
            burst, demo_share: as of TD-MPC2's settings, with other defaults. Sparse success must travel far within few
            updates, so that targets follow fast: where values are flat yet, plans follow noise.
    """

    critics: int | None = 5
    ensemble: bool = True
    centre: str = "policy"
    first_std: float = 0.1
    policy_std: float | None = 0.1
    samples: int = 24
    policy_samples: int = 40
    iterations: int = 1
    uncertainty: float = 1.0
    noise: float = 0.1
    tau: float = 0.05
    learning_starts: int = 1000
    burst: int = 1000
    demo_share: float = 0.75
    pretraining: int = 2000
    warmup: int = 1000
    imitation_weight: float = 20.0
    demo_share_last: float | None = 0.25
    demo_share_over: int = 50_000
    handover: str | None = "measured"
    handover_over: int = 20_000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.handover not in HANDOVERS:
            raise ValueError(f"modem: handover must be measured, schedule or null; got {self.handover!r}.")
        if self.demo_share_last is not None and not 0 <= self.demo_share_last <= 1:
            raise ValueError(f"modem: demo_share_last must be in [0, 1] or null; got {self.demo_share_last}.")
        check(self, least_zero=("pretraining", "warmup", "imitation_weight"))


class MoDem(TDMPC2):
    """The learner; see the module. Arguments and errors as of `TDMPC2`.

    Args:
        observation_space, action_space, seed, device, settings: as of `TDMPC2`.
    """

    settings: MoDemSettings

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        *,
        seed: int,
        device: str,
        settings: MoDemSettings,
    ) -> None:
        super().__init__(observation_space, action_space, seed=seed, device=device, settings=settings)
        s = settings
        self.sampling: Sampling | None = Sampling(
            length=s.horizon, batch_size=s.batch_size, demo_share=s.demo_share, demo_share_last=s.demo_share_last,
            demo_share_over=s.demo_share_over, gamma=s.gamma,
        )  # fmt: skip
        self._imitation = copy.deepcopy(self.model).requires_grad_(False)  # of which encoder and policies are used
        self._imitation_adam = adam((self.model.encoder, self.model.policies), s.learning_rate)
        self.handover = HandOver()
        self.imitates = False  # whether there was something to imitate

    def _pace(self) -> Pace:
        return Pace(**(vars(super()._pace()) | {"pretraining": self.settings.pretraining}))

    # Acting ---------------------------------------------------------------------------------------------

    @property
    def _warm(self) -> bool:
        return not self.imitates or self.updates >= self.settings.warmup

    @property
    def share(self) -> float:
        """Of the steps that are the plans' by schedule."""
        s = self.settings
        return float(np.clip((self.steps - s.learning_starts) / max(s.handover_over, 1), 0, 1)) if self._warm else 0.0

    @property
    def _best(self) -> int:
        if not self.imitates:
            return LEARNED
        match self.settings.handover:
            case "measured":
                return self.handover.best
            case "schedule":
                return LEARNED if self.share >= 0.5 else IMITATION
        return LEARNED if self._warm else IMITATION

    def begin(self, count: int) -> Memory:
        """Each world's last plan, shifted by a step, and who plays there."""
        return super().begin(count) | {"player": np.full(count, self._best, np.int8)}

    @torch.no_grad()
    def act(self, obs: Obs, memory: Memory, first: np.ndarray, *, explore: bool) -> tuple[np.ndarray, Memory]:
        """(E, A) in [-1, 1]; the plans' where they play, else imitation's, with noise where it explores."""
        before, player = memory, self._players(memory["player"], first, explore=explore)
        memory = self.begin(len(player)) | {"player": player}  # where imitation plays nothing is planned
        action, planned = np.zeros((len(player), self.num_actions), np.float32), np.flatnonzero(player == LEARNED)
        if len(planned):
            some = map_leaves(lambda leaf: leaf[planned], obs)
            last = {"plan": before["plan"][planned]}
            action[planned], after = super().act(some, last, first[planned], explore=explore)
            memory["plan"][planned] = after["plan"]
        if len(planned) < len(player):
            action = np.where((player == LEARNED)[:, None], action, self._imitated(obs, explore=explore))
        return action, memory

    def executed(self, memory: Memory, action: np.ndarray, intervened: np.ndarray, *, explore: bool) -> Memory:
        """Where a person acted planning begins anew, and the episode counts for neither policy."""
        if explore and self.imitates and self.settings.handover == "measured":
            self.handover.replaced(intervened)
        return super().executed(memory, action, intervened, explore=explore)

    def _players(self, before: np.ndarray, first: np.ndarray, *, explore: bool) -> np.ndarray:
        if not (explore and self.imitates):
            return np.where(first, self._best, before).astype(np.int8)
        match self.settings.handover:
            case "measured":
                player = before.copy()
                player[first] = self.handover.choose(int(first.sum()))
                self.handover.acted(player, first)
                return player
            case "schedule":
                drawn = torch.rand(len(before), generator=self._acting).numpy()
                return np.where(drawn < self.share, LEARNED, IMITATION).astype(np.int8)
        return np.full(len(before), self._best, np.int8)

    def _imitated(self, obs: Obs, *, explore: bool) -> np.ndarray:
        model = self._imitation
        z = model.encoder(map_leaves(lambda leaf: torch.as_tensor(leaf, device=self.device), obs))
        action = torch.tanh(model.gaussian(z)[0]).mean(0).cpu()
        if explore:
            noise = torch.randn(action.shape, generator=self._acting)
            action = (action + self.settings.noise * noise).clamp(-1, 1)
        return action.numpy()

    def observe(self, rollout: Rollout, reward: np.ndarray) -> None:
        """Count steps and earnings, take the observations into their mean and deviation."""
        super().observe(rollout, reward)
        if self.imitates and self.settings.handover == "measured":
            self.handover.open = self._warm
            self.handover.observe(rollout, reward)

    # Learning -------------------------------------------------------------------------------------------

    def update(self, batches: Iterator[Batch], count: int) -> dict[str, float]:
        """So many updates; before the first observed step, of imitation alone."""
        if not self.steps:
            return self._pretrain(batches, count)
        out = super().update(batches, count)
        return out | (self.handover.metrics() if self.imitates and self.settings.handover == "measured" else {})

    def _learn(self, batch: Batch, *, move_policy: bool = True) -> dict[str, Tensor]:
        return super()._learn(batch, move_policy=move_policy and self._warm)

    def _pulls(self, wished: Wish, batch: Batch, scale: Tensor) -> dict[str, tuple[float, Tensor]]:
        """Demonstrations too, once there were some."""
        weight, pulls = self.settings.imitation_weight, super()._pulls(wished, batch, scale)
        if not self.imitates or not weight:
            return pulls
        return pulls | {"imitation_loss": (weight, imitation(self.model, wished.z, batch).sum())}

    def _pretrain(self, batches: Iterator[Batch], count: int) -> dict[str, float]:
        """Imitate, remember who imitates, and set the target heads to the heads."""
        model, errors = self.model, []
        for _ in range(count):
            batch = next(batches).to(self.device)
            obs = map_leaves(lambda leaf: leaf[:-1], batch.obs)
            if self.settings.standardise:
                self._standardise(obs)
            error = imitation(model, model.encoder(flatten(self._augmented(obs))), batch)
            self._imitation_adam.zero_grad()
            error.sum().backward()  # each policy's own
            self._imitation_adam.step()
            errors.append(error.detach().mean())
            self.imitates |= bool((batch.valid & batch.imitate).any())
        if not self.imitates:
            warn_of_failures_alone(type(self).__name__.lower())
            return {}
        self._imitation.load_state_dict(model.state_dict())
        self._targets.load_state_dict(model.critics.state_dict())
        return {"imitation_error": float(torch.stack(errors).mean())} if errors else {}

    # Resume ---------------------------------------------------------------------------------------------

    @property
    def _parts(self) -> dict[str, Any]:
        return super()._parts | {"imitation": self._imitation, "imitation_adam": self._imitation_adam}

    def state(self) -> State:
        """Everything that continuing needs; plans and players are the actor's memory."""
        tensors, values = super().state()
        return tensors, values | {"imitates": self.imitates, "handover": self.handover.state()}

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Undo of `state`."""
        super().load_state(tensors, values)
        self.imitates = values["imitates"]
        self.handover.load_state(values["handover"])


modem = maker(MoDem, MoDemSettings)
