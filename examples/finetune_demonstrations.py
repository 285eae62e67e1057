"""Demonstrations, good and bad, to a policy that acts, under LeRobot's method names.

    python examples/finetune_demonstrations.py FOLDER

`embodied collect` and `embodied finetune` do this from a shell. Here all is so small that it takes seconds: it shows
how the parts fit, and what comes out is no good. Leave SMALL out, and collect sixty episodes, for one that is better.
"""

import sys
from pathlib import Path

import numpy as np
import torch

from embodied import cli
from embodied.collecting.episodes import own_readings
from embodied.envs.bridge import make
from embodied.finetuning.trying import lerobot_policy

SIZE, STEPS = 32, 20
SMALL = (
    "policy.horizon=4", "policy.channels=8", "policy.places=2", "policy.width=16",
    "steps=20", "batch_size=4", "validation=1", "execute=4", "eval_episodes=2", "num_worlds=2", "videos=0",
)  # fmt: skip


def command(verb: str, *settings: str) -> None:
    """A verb of the command line, with its settings."""
    if cli.main([verb, *settings]):
        raise SystemExit(f"{verb} failed")


def main(folder: Path) -> None:
    """Collect, fine-tune, then act for an episode as any LeRobot policy does."""
    command(
        "collect", "env=desk-reach", f"+env.kwargs.max_episode_steps={STEPS}", f"image_size={SIZE}", "policy=mixed",
        "shares={expert: 0.5, noisy: 0, near_miss: 0, failure: 0, random: 0.5}", "cameras=[front,wrist]", "episodes=4",
        f"out={folder / 'demos'}",
    )  # fmt: skip
    # Two of the four reached the cube. `labels.source=recorded` trusts the simulator's word; `success`, the default,
    # asks the pixels.
    command("finetune", f"data={folder / 'demos'}", f"run={folder / 'tuned'}", "labels.source=recorded", *SMALL)

    policy = lerobot_policy(folder / "tuned")  # select_action, predict_action_chunk, reset
    env = make("desk-reach", max_episode_steps=STEPS)
    obs, info = env.reset(seed=0)
    policy.reset()
    ended = False
    while not ended:
        frames = {name: env.get_wrapper_attr("frame")(camera=name, image_size=SIZE) for name in ("front", "wrist")}
        batch = {f"observation.images.{name}": pictures(frame) for name, frame in frames.items()}
        batch |= {
            "observation.state": torch.from_numpy(own_readings(env, obs)[1])[None],
            "task": ["reach the red cube"],
        }
        obs, _, terminated, truncated, info = env.step(policy.select_action(batch)[0].numpy())
        ended = terminated or truncated
    print(f"acted for {STEPS} steps; the cube was {'' if info['is_success'] else 'not '}reached")
    env.close()


def pictures(frame: np.ndarray) -> torch.Tensor:
    """(H, W, 3) uint8 as LeRobot's policies take it: (1, 3, H, W) float in [0, 1]."""
    return torch.from_numpy(frame.copy()).permute(2, 0, 1)[None].float() / 255


if __name__ == "__main__":
    main(Path(sys.argv[1]))
