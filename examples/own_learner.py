"""The world of `gym_world.py`, learned by this package's own learner and loop.

    python examples/own_learner.py FOLDER

Everything that `embodied train` does for a config stands here in a few lines: worlds, what the policy perceives,
rewards, the learner, the replay, the log. Any object with the methods of `policies.core.Learner` may take the learner's
place.
"""

import sys
from functools import partial
from pathlib import Path

from gym_world import GOAL

from embodied.envs.bridge import make
from embodied.envs.vector import WorldVecEnv
from embodied.training.collector import Collector
from embodied.training.labeller import Labeller
from embodied.training.log import RunLog
from embodied.training.loop import Training, train
from embodied.training.perception import Perception
from policies.rlpd import rlpd
from rewards.clip_goal import clip_scorer
from rewards.encoders import embedded_encoder

WORLDS, STEPS = 2, 64


def main(folder: Path) -> None:
    """Train for a few steps; curves go to the folder."""
    scorer = clip_scorer(encoder=embedded_encoder(), goal=GOAL)
    size = scorer.encoder.image_size[0]
    worlds = WorldVecEnv(partial(make, "Slider-v0"), WORLDS, seed=0, frame_size=size)
    # "features": the policy reads the vector that the reward reads, from the same pass; it never sees `Slider.place`.
    collector = Collector(worlds, lambda layout: Perception(scorer.encoder, layout, "features"))
    learner = rlpd(
        collector.observation_space,
        worlds.action_space,
        num_worlds=WORLDS,
        total_steps=STEPS,
        seed=0,
        device="cpu",
        learning_starts=16,
        batch_size=16,
    )
    labeller = Labeller(scorer, collector.layout, WORLDS)
    training = Training.of(collector, labeller, learner, demos=None, total=STEPS, seed=0)
    log = RunLog(folder)
    train(training, STEPS, log, log_every=STEPS)
    log.close()
    collector.close()
    print(f"{training.steps} steps, mean return {sum(training.recent['reward']) / len(training.recent['reward']):.3f}")


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    main(target)
