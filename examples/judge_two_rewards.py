"""Which of two rewards to trust: two sentences, judged on a few labelled episodes before anyone trains on them.

    python examples/judge_two_rewards.py

`embodied judge` does this with more episodes, intervals, films that must not pay, and a report.
"""

import numpy as np
import torch

from embodied.envs.bridge import make
from embodied.envs.experts import expert
from rewards.clip_goal import clip_scorer
from rewards.encoders import embedded_encoder
from rewards.metrics import auroc, value_order_correlation

SENTENCES = ("the drawer is open", "the button is pressed")  # the second is another task's
EVERY = 5  # steps between the frames that are looked at


def episode(seed: int, *, good: bool) -> tuple[torch.Tensor, bool]:
    """Frames (T, 96, 96, 3) uint8 of the desk, by its expert or by random actions, and whether the drawer was open."""
    env = make("desk-drawer")
    env.reset(seed=seed)
    env.action_space.seed(seed)
    act = expert(env.unwrapped) if good else lambda world: env.action_space.sample()
    frames, success, truncated = [env.unwrapped.frame()], False, False
    step = 0
    while not truncated:
        *_, truncated, info = env.step(act(env.unwrapped))
        success, step = bool(info["is_success"]), step + 1
        if step % EVERY == 0:
            frames.append(env.unwrapped.frame())
    env.close()
    return torch.from_numpy(np.stack(frames)), success


def main() -> None:
    """Two good episodes and two random ones, scored by both sentences."""
    episodes = [episode(seed, good=good) for seed, good in ((0, True), (1, True), (2, False), (3, False))]
    done = [success for _, success in episodes]
    encoder = embedded_encoder()
    for sentence in SENTENCES:
        scorer = clip_scorer(encoder=encoder, goal=sentence)
        scores = [scorer.score(frames).numpy() for frames, _ in episodes]
        order = np.mean([value_order_correlation(each) for each, success in zip(scores, done, strict=True) if success])
        told = auroc([float(each[-1]) for each in scores], done)
        print(f"{sentence!r}: rises along a success {order:.2f}, tells success by the last frame {told:.2f}")


if __name__ == "__main__":
    main()
