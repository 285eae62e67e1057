"""People who want different things of one desk: one reward fitted to all of them, and VPL, which asks whose it is.

Synthetic users compare random states of the desk by a fact that they care about: half by how far the drawer is open,
half by how far it is closed. Both rewards are fitted to the same comparisons; VPL then follows new users by 16
comparisons each. Judged on pairs of states that nobody compared. Repeated over two seeds. With fewer comparisons
(20 users, 30 each) VPL did not yet tell users apart; chosen on other states.

    python -m benchmarks.users
"""

from __future__ import annotations

import numpy as np
import torch

import embodied.envs  # noqa: F401  (registers the worlds)
from benchmarks.common import record
from embodied.pretraining.renders import open_world
from rewards.comparisons import Comparisons, compare, draw_pairs
from rewards.core import Episode, Features
from rewards.encoders import embedded_encoder
from rewards.preference import PreferenceReward, fixed_set
from rewards.vpl import VPLReward, fit_vpl

FACTS = ("drawer_open", "drawer_closed")
STATES, USERS, EACH, CONTEXT, SEEDS = 600, 40, 50, 16, (0, 1)


def states(count: int, seed: int) -> tuple[Episode, np.ndarray]:
    """Random states of the desk as rows of one episode, and how far each fact holds, (count, 2)."""
    encoder = embedded_encoder()
    world = open_world("embodied/desk-drawer-v0", encoder.image_size[0])
    world.reset(seed=seed)
    rng = np.random.default_rng(seed)
    frames, degrees = [], []
    for _ in range(count):
        world.sample_state(rng)
        frames.append(world.frame())
        truth = world.degrees()
        degrees.append([truth[fact] for fact in FACTS])
    world.close()
    rows = torch.cat([encoder.encode_images(part) for part in torch.from_numpy(np.stack(frames)).split(16)])
    return Episode(features=Features(views={"front": rows[None]})), np.array(degrees)


def said(pairs: np.ndarray, degrees: np.ndarray, fact: int) -> np.ndarray:
    """What a user who cares about one fact says of pairs."""
    worth = degrees[pairs[..., 1], fact]
    return (worth[:, 1] > worth[:, 0]).astype(np.int64)


def right(head: PreferenceReward | VPLReward, episode: Episode, degrees: np.ndarray, fact: int) -> float:
    """The share of held-out pairs that a reward orders as the user would."""
    pairs = draw_pairs([episode], 2000, seed=99)
    pairs = pairs[degrees[pairs[:, 0, 1], fact] != degrees[pairs[:, 1, 1], fact]]
    score = head.score(episode.features)[0].numpy()
    ahead = score[pairs[:, 1, 1]] > score[pairs[:, 0, 1]]
    return float((ahead == (said(pairs, degrees, fact) == 1)).mean())


def comparisons(episode: Episode, degrees: np.ndarray, seed: int) -> Comparisons:
    """Of all users, every second of whom cares about the second fact."""
    pairs = draw_pairs([episode], USERS * EACH, seed=seed)
    parts = [said(pairs[u * EACH : (u + 1) * EACH], degrees, u % 2) for u in range(USERS)]
    names = [f"{u:02}" for u in range(USERS) for _ in range(EACH)]
    return compare([episode], pairs, np.concatenate(parts), users=names)


def main() -> None:
    """Fit both, judge both, record."""
    torch.set_num_threads(1)
    seen, seen_degrees = states(STATES, 0)
    held_out, held_out_degrees = states(STATES // 2, 1)
    reference = fixed_set([seen])
    found: dict[str, list[float]] = {"one reward for all": [], "VPL": []}
    for seed in SEEDS:
        told = comparisons(seen, seen_degrees, seed)
        one = PreferenceReward(told, reference, seed=seed)
        networks = fit_vpl(told, reference, seed=seed)
        for fact in range(2):
            pairs = draw_pairs([seen], CONTEXT, seed=1000 + seed)
            context = compare([seen], pairs, said(pairs, seen_degrees, fact))
            own = VPLReward(networks, reference, context)
            found["one reward for all"].append(right(one, held_out, held_out_degrees, fact))
            found["VPL"].append(right(own, held_out, held_out_degrees, fact))
    rows = [
        {
            "claim": f"users who want different things, {name}: held-out pairs ordered as the user would",
            "value": float(np.mean(values)),
            "unit": "share",
            "n": len(values),
            "seeds": list(SEEDS),
            "each": values,
        }
        for name, values in found.items()
    ]
    for row in rows:
        print(row["claim"], round(row["value"], 3), np.round(row["each"], 3).tolist())
    record("users", rows)


if __name__ == "__main__":
    main()
