"""Which of several chunks to execute: a critic chooses, and the two are kept as one policy.

Shape letters: B batch; M candidates; H actions of a chunk, A action; K critics.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from policies.vla.core import ChunkPolicy
from policies.vla.critic import Context, PrefixCritic
from policies.vla.embedded import ChunkObservation

CONFIG, WEIGHTS = "critic.json", "critic.safetensors"


def many(critic: PrefixCritic, context: Context, drawn: Float[Tensor, "B M H A"]) -> Float[Tensor, "K B M"]:
    """What each of several whole chunks (B, M, H, A) of an observation is worth.

    Args:
        critic: of K heads.
        context: what it reads of each observation.
        drawn: M chunks of each, normalised.
    """
    wide = (context[0].repeat_interleave(drawn.shape[1], 0), context[1].repeat_interleave(drawn.shape[1], 0))
    return critic(wide, drawn.flatten(0, 1))[..., -1].unflatten(1, drawn.shape[:2])


def candidates(
    policy: ChunkPolicy, context: Context, count: int, deviation: float, random: torch.Generator
) -> Float[Tensor, "B M H A"]:
    """M normalised chunks of each observation, the policy's own first.

    The others are drawn by a head that starts from noise; of an L1 head they are its chunk, moved by noise that is held
    for the whole of it.

    Args:
        policy: whose chunks.
        context: what it reads of each observation.
        count: M.
        deviation: of the noise, in normalised actions.
        random: of the draws.
    """
    own = policy.decide(context)
    if policy.spec.head != "l1":
        return torch.stack([own, *(policy.decide(context, random) for _ in range(count - 1))], 1)
    noise = torch.randn((len(own), count - 1, 1, own.shape[-1]), generator=random).to(own)
    return torch.cat([own[:, None], own[:, None] + deviation * noise], 1)


class BestOfN(nn.Module):
    """A policy of which the critic chooses among M chunks; it acts and is kept as `ChunkPolicy` is.

    Args:
        policy: gives the chunks.
        critic: chooses.
        count: M.
        deviation: see `candidates`.
        seed: of the candidates.
    """

    def __init__(
        self, policy: ChunkPolicy, critic: PrefixCritic, *, count: int, deviation: float, seed: int
    ) -> None:  # fmt: skip
        super().__init__()
        self.policy, self.critic = policy, critic
        self.spec, self.compress, self.about = policy.spec, policy.compress, (count, deviation, seed)
        self._random = torch.Generator().manual_seed(seed)

    @property
    def device(self) -> torch.device:
        return self.policy.device

    @torch.no_grad()
    def predict_chunk(self, obs: ChunkObservation, random: torch.Generator | None = None) -> Float[Tensor, "B H A"]:
        """The chosen chunk in the robot's units, on the CPU; `random` draws the candidates, where it is given."""
        self.eval()
        context, (count, deviation, _) = self.policy.look(obs), self.about
        drawn = candidates(self.policy, context, count, deviation, random or self._random)
        chosen = self.rank(context, drawn).argmax(1)
        return self.policy.action.backward(drawn[torch.arange(len(drawn)), chosen].cpu())

    @torch.no_grad()
    def rank(self, context: Context, drawn: Float[Tensor, "B M H A"]) -> Float[Tensor, "B M"]:
        """What each chunk is worth: the least of the critics."""
        return many(self.critic, context, drawn).amin(0)

    def save(self, folder: Path) -> None:
        """The policy's folder, and in it what chooses."""
        about: dict[str, Any] = dict(zip(("count", "deviation", "seed"), self.about, strict=True))
        self.policy.save(folder, lambda made: save_critic(made, self.critic, about))


def save_critic(folder: Path, critic: PrefixCritic, about: dict[str, Any]) -> None:
    """Write critic.json and critic.safetensors into a folder; the JSON last, so that it tells that both are there.

    Args:
        folder: is there.
        critic: is written.
        about: what else is kept with it, JSON values.
    """
    save_file(
        {name: value.detach().cpu().contiguous() for name, value in critic.state_dict().items()}, folder / WEIGHTS
    )
    (folder / CONFIG).write_text(json.dumps({"sizes": critic.sizes, **about}, indent=2) + "\n", "utf-8")


def load_critic(folder: Path) -> tuple[PrefixCritic, dict[str, Any]]:
    """A critic that `save_critic` wrote, and what was written with it.

    Args:
        folder: that `save_critic` wrote to.

    Raises:
        FileNotFoundError: none is there.
        ValueError: a damaged one.
    """
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise FileNotFoundError(f"load_critic: must be a folder with {CONFIG} and {WEIGHTS}; got {folder}.")
    try:
        about = json.loads((folder / CONFIG).read_text("utf-8"))
        critic = PrefixCritic(**about.pop("sizes"))
        critic.load_state_dict(load_file(folder / WEIGHTS))
    except (json.JSONDecodeError, SafetensorError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"load_critic: {folder} is damaged ({error}). Train it again.") from error
    return critic.eval(), about


def load_acting(folder: Path) -> ChunkPolicy | BestOfN:
    """The policy of a folder, with the critic that chooses for it, where one is there."""
    policy = ChunkPolicy.load(folder)
    if not (folder / CONFIG).is_file():
        return policy
    critic, about = load_critic(folder)
    return BestOfN(policy, critic, count=int(about["count"]), deviation=float(about["deviation"]), seed=about["seed"])
