"""What a learner is shown: demonstrations, and what a person did in the middle of the learner's own episodes.

Of an episode in which a person acted only those steps are drawn, as HIL-SERL's second buffer has it (Luo et al., arXiv
2410.21845, §III-C). The steps between lie there too, so that windows go on as the episode did, and rewards can be made
anew by heads that look at all of it.

Shape letters: S slots, T steps, E worlds.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from policies.core import Rollout
from policies.replay import ROWS, Replay

DRAWN = "drawn"  # the steps that can be, in a state


class Shown(Replay):
    """A replay of whole episodes, one after the other, that grows.

    Args:
        observation_space: see `Replay`.
        action_space: see `Replay`.
        capacity: steps kept at first.
        seed: of the draws.
        folder: see `Replay`.

    Attributes:
        interventions: steps of a person among those that can be drawn.
    """

    def __init__(
        self, observation_space: spaces.Space, action_space: spaces.Space, *, capacity: int, seed: int,
        folder: Path | None = None,
    ) -> None:  # fmt: skip
        super().__init__(
            observation_space, action_space, capacity=capacity, num_worlds=1, seed=seed, grows=True, folder=folder
        )
        self._drawn: np.ndarray | None = None  # slots; None: all
        self.interventions = 0

    def __len__(self) -> int:
        """Transitions that can be drawn."""
        return self._size if self._drawn is None else len(self._drawn)

    def _draw(self, count: int) -> np.ndarray:
        drawn = super()._draw(count)
        return drawn if self._drawn is None else self._drawn[drawn]

    def add(self, rollout: Rollout, reward: np.ndarray, imitate: np.ndarray | None = None, **beside: Any) -> None:
        """See `Replay.add`; these steps can be drawn."""
        before = self._size
        super().add(rollout, reward, imitate, **beside)
        if self._drawn is not None:
            self._drawn = np.append(self._drawn, np.arange(before, self._size))

    def take(self, own: Replay, ended: np.ndarray) -> None:
        """Copy the episodes in which a person acted, once they are over.

        Args:
            own: what the learner did, a person's actions marked as to be imitated; its newest T steps are these.
            ended: (T, E) bool, where an episode ended, or was cut.
        """
        for t, e in np.argwhere(ended):
            slots = _episode(own, (own.pos - len(ended) + int(t)) % own.slots, int(e))
            if own._columns["imitate"][slots, e].any():
                self._copy(own, slots, int(e))

    def _copy(self, own: Replay, slots: np.ndarray, world: int) -> None:
        columns = {name: column[slots, world] for name, column in own._columns.items()}
        moments = {name: own._moments.piece(name, slots, world) for name in own._moments.rings}
        rows = moments.pop(ROWS, None)
        obs = {name.removeprefix("obs").removeprefix("/"): values for name, values in moments.items()}
        before, drawn, person = self._size, self._drawn, columns["imitate"]
        self.add_episode(
            own._formed(obs), columns["action"], columns["reward"],
            terminated=bool(columns["terminated"][-1]), imitate=person, env_reward=columns["env_reward"], rows=rows,
        )  # fmt: skip
        self._drawn = np.append(np.arange(before) if drawn is None else drawn, before + np.flatnonzero(person))
        self.interventions += int(person.sum())

    # Checkpoints ----------------------------------------------------------------------------------------

    def arrays(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """See `Replay.arrays`."""
        arrays, values = super().arrays()
        if self._drawn is not None:
            arrays[DRAWN] = self._drawn
        return arrays, values | {"interventions": self.interventions}

    def load(self, arrays: Mapping[str, np.ndarray], values: Mapping[str, Any]) -> None:
        """Undo of `arrays`.

        Raises:
            ValueError: it was of other columns.
        """
        super().load(arrays, values)
        self._drawn, self.interventions = arrays.get(DRAWN), int(values["interventions"])


def _episode(own: Replay, last: int, world: int) -> np.ndarray:
    """Slots of the stored steps of the episode whose last step that is, oldest first."""
    stops = own._columns["terminated"][:, world] | own._columns["truncated"][:, world]
    older = (last - (own.pos if own.full else 0)) % own.slots
    count = 1
    while count <= older and not stops[(last - count) % own.slots]:
        count += 1
    return (last - np.arange(count)[::-1]) % own.slots
