"""Own episodes that earned much, kept to be imitated: self-imitation (Oh et al., arXiv 1806.05635) by whole episodes.

Theirs weighs single steps by how far the return exceeds a learned value; here an episode is kept if it earned more than
imitation does on average, so that nothing learned decides.

Shape letters: E worlds, B windows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from policies.core import Batch, Rollout, Sampling, leaves, map_leaves
from policies.replay import Replay


class Keeping:
    """The episodes kept, and the ones that run.

    Args:
        observation_space: of the learner.
        action_space: of the learner.
        seed: of the draws.
    """

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space, *, seed: int) -> None:
        self._kept = Replay(observation_space, action_space, capacity=1024, num_worlds=1, seed=seed, grows=True)
        self._episodes = 0
        self._running: list[list[tuple[Any, np.ndarray, float]]] = []

    def observe(
        self, rollout: Rollout, reward: np.ndarray, *, above: float | None, own: np.ndarray | None = None
    ) -> None:
        """Keep the episodes that end here and earned more than `above`; None: not known yet, none.

        Args:
            rollout: the newest steps.
            reward: what they earned.
            above: see there.
            own: (T, E) bool, False where someone else has acted in the episode, which then is not kept; None: all.
        """
        count, num_worlds = reward.shape
        if len(self._running) != num_worlds:
            self._running = [[] for _ in range(num_worlds)]
        for t in range(count):
            for e in range(num_worlds):
                running = self._running[e]
                if rollout.first[t, e]:
                    running.clear()
                elif not running:
                    continue  # its beginning was not seen, or is not its own
                at = (t, e)
                if own is not None and not own[at]:
                    running.clear()
                    continue
                running.append(
                    (
                        map_leaves(lambda leaf, at=at: leaf[at].copy(), rollout.obs),
                        rollout.action[at],
                        float(reward[at]),
                    )
                )
                if not rollout.ended[at]:
                    continue
                if above is not None and sum(step[2] for step in running) > above:
                    last = map_leaves(lambda leaf, at=at: leaf[at], rollout.next_obs)
                    self._keep(running, last, terminated=bool(rollout.terminated[at]))
                running.clear()

    def _keep(self, steps: list[tuple[Any, np.ndarray, float]], last: Any, *, terminated: bool) -> None:
        obs = map_leaves(lambda *parts: np.stack(parts), *(step[0] for step in steps), last)
        rewards = np.array([step[2] for step in steps], np.float32)
        self._kept.add_episode(obs, np.stack([step[1] for step in steps]), rewards, terminated=terminated)
        self._episodes += 1

    def sample(self, count: int, length: int = 1) -> Batch | None:
        """So many windows of what was kept, `length` steps each; None where there is nothing yet."""
        return self._kept.sample(Sampling(length=length, batch_size=count)) if len(self._kept) else None

    def metrics(self) -> dict[str, float]:
        """For the log."""
        return {"kept_episodes": float(self._episodes)}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON values."""
        arrays, values = self._kept.arrays()
        tensors = {
            f"kept/{name}": torch.from_numpy(np.ascontiguousarray(array).copy()) for name, array in arrays.items()
        }
        for e, steps in enumerate(self._running):
            if steps:
                parts = [leaves(step[0]) for step in steps]
                for name in parts[0]:
                    tensors[f"running/{e}/obs/{name}"] = torch.from_numpy(np.stack([part[name] for part in parts]))
                tensors[f"running/{e}/action"] = torch.from_numpy(np.stack([step[1] for step in steps]))
                tensors[f"running/{e}/reward"] = torch.tensor([step[2] for step in steps], dtype=torch.float64)
        return tensors, {"kept": values, "episodes": self._episodes, "worlds": len(self._running)}

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Undo of `state`."""
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        self._episodes = int(values["episodes"])
        self._kept.load(
            {n.removeprefix("kept/"): a for n, a in arrays.items() if n.startswith("kept/")}, values["kept"]
        )
        self._running = [[] for _ in range(values["worlds"])]
        for e, steps in enumerate(self._running):
            if f"running/{e}/action" not in arrays:
                continue
            start = f"running/{e}/obs/"
            parts = {name.removeprefix(start): array for name, array in arrays.items() if name.startswith(start)}
            for k, action in enumerate(arrays[f"running/{e}/action"]):
                obs = {name: array[k] for name, array in parts.items()}
                steps.append((obs[""] if set(obs) == {""} else obs, action, float(arrays[f"running/{e}/reward"][k])))
