"""VLM-RM's humanoid: its goal-baseline reward by alpha on sampled poses, and policies from a sentence.

`part=reward` repeats the paper's ablation (arXiv 2310.12921, section 3) with the embedded encoder and no training: for
each goal and alpha, how well the reward tells poses in which the goal's fact holds from others (AUROC), and how well it
follows how nearly it holds (rank correlation). The baseline text is the paper's. Beside the sentence that we offer
stand wordings that were kept for judging, and the paper's own sentence where the goal has one. One raised leg is also
judged among standing poses alone. Nothing is chosen here.

`part=policy` trains RLPD on own readings, which a robot's joints have, with the same sentence as its reward; `other` is
the control, the same with another goal's sentence, judged by the goal's own fact; `true` learns from the fact itself.
Success is the pose at the last step of held-out episodes; beside it stands the share of the last second in which the
pose was right (the paper counts a success where it is right in half of the steps). An action tells where each joint
should be for 0.15 s (`control="position"`), so an episode of 1.5 s is ten of them; the reward is the mean of two views,
as an arm bent behind the head looks raised from before. `torque` is the paper's control. These, the discount and the
number of updates were tried on seed 100, which judges nothing. The paper takes 10^7 steps and a ViT-bigG on four GPUs.
What is finished is not run again.

`part=untrained` tells how often each pose comes by itself: a body that does nothing, and one that acts at random.

    python -m benchmarks.humanoid part=reward
    python -m benchmarks.humanoid part=untrained
    python -m benchmarks.humanoid part=policy                       # 36 runs of 10,000 steps
    python -m benchmarks.humanoid part=policy goals=["kneel"] control=torque steps=10000000 jobs=1    # the paper's
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.common import load, read_options, record, train, trained
from embodied.envs.bridge import make
from embodied.envs.captions import Captions
from embodied.envs.humanoid import CONTROLS
from embodied.envs.tasks import HUMANOID
from embodied.paths import asset
from embodied.pretraining.renders import Renders, render
from rewards.clip_goal import goal_baseline_reward
from rewards.core import Encoder
from rewards.encoders import embedded_encoder
from rewards.metrics import auroc, spearman, wilson_interval

ROOT = Path("runs", "benchmarks", "humanoid")
BASELINE = "a humanoid robot"  # of the paper's table 3
ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
PAPER = {  # its sentences, of those of our goals that it has
    "kneel": "a humanoid robot kneeling",
    "stand": "a humanoid robot standing up",
    "arms": "a humanoid robot standing up, with both arms raised",
    "leg": "a humanoid robot standing up on one leg",
}
LOOKS = {"own look": 1.0, "varied look": 0.0}  # share of frames with the world's own look
SEED, RESAMPLES = 910_001, 200
SEEDS, EPISODES = (0, 1, 2), 48
UNTRAINED_SEED = 920_001
OTHER = {"stand": "lie", "kneel": "arms", "arms": "kneel", "sit": "stand", "lie": "stand", "leg": "sit"}
WAYS = ("sentence", "other", "true")
HOLD = {"position": 10, "torque": 3}  # control steps that an action lasts, of the 100 of an episode
LEARNER = {
    "position": ["policy.gamma=0.9", "policy.updates_per_step=3"],
    "torque": ["policy.gamma=0.97", "policy.n_steps=3", "policy.updates_per_step=0.5"],
}
CAMERAS = "[front,side]"


# Rewards --------------------------------------------------------------------------------------------------------


class Figure(NamedTuple):
    """How one reward orders poses."""

    area: float  # AUROC for the fact
    rank: float  # correlation with how far it holds
    low: float
    high: float  # 95 % of the area, by resampling poses


def figure(reward: np.ndarray, degrees: np.ndarray) -> Figure:
    """AUROC and rank correlation of one reward (N,) with a fact's degrees (N,)."""
    rng, areas = np.random.default_rng(0), []
    for _ in range(RESAMPLES):
        drawn = rng.integers(len(reward), size=len(reward))
        areas.append(auroc(reward[drawn], degrees[drawn] == 1))
    low, high = np.quantile(areas, [0.025, 0.975])
    return Figure(auroc(reward, degrees == 1), spearman(reward, degrees), float(low), float(high))


def rewarded(encoder: Encoder, state: torch.Tensor, text: str, alpha: float) -> np.ndarray:
    """(N,) the reward of frames' embeddings (N, D) for one goal text against the paper's baseline."""
    goal, baseline = encoder.encode_texts([text, BASELINE])
    return goal_baseline_reward(state, goal, baseline, alpha).numpy()


def sentence(captions: Captions, goal: str) -> str:
    """What a policy is told: the sentence that we offer for a goal, else the paper's."""
    return captions.goals.get(HUMANOID[goal].fact) or PAPER[goal]


def reward_rows(encoder: Encoder, renders: dict[str, Renders]) -> list[dict[str, Any]]:
    """A row a look, goal and alpha; then the means over goals of each kind of sentence."""
    captions = Captions.load(asset("humanoid") / "captions.yaml")
    table: list[dict[str, Any]] = []
    means: dict[tuple[str, float, str], dict[str, Figure]] = {}
    for look, part in renders.items():
        state = encoder.encode_images(torch.from_numpy(part.frames))
        stands = part.degrees[:, part.facts.index("standing")] == 1
        for name, task in HUMANOID.items():
            goal, fact = sentence(captions, name), task.fact
            degrees = part.degrees[:, part.facts.index(fact)]
            kinds = {"held-out": captions.facts[fact]["test"].all()}
            kinds |= {"offered": [goal]} if fact in captions.goals else {}
            kinds |= {"paper's": [PAPER[name]]} if name in PAPER else {}
            for alpha in ALPHAS:
                found = {
                    text: figure(rewarded(encoder, state, text, alpha), degrees)
                    for text in dict.fromkeys(text for texts in kinds.values() for text in texts)
                }
                for kind, texts in kinds.items():
                    areas, ranks = ([found[text][k] for text in texts] for k in (0, 1))
                    mean = Figure(float(np.mean(areas)), float(np.mean(ranks)), min(areas), max(areas))
                    means.setdefault((look, alpha, kind), {})[name] = mean
                own = found[goal]
                table.append(
                    {
                        "claim": f"{fact}, {look}, alpha {alpha}: AUROC of “{goal}”",
                        "value": own.area,
                        "unit": "AUROC",
                        "n": len(part.frames),
                        "interval": [own.low, own.high],
                        "rank_correlation": own.rank,
                        "holds": float((degrees == 1).mean()),
                        "sentences": {text: [each.area, each.rank] for text, each in found.items()},
                    }
                )
                if fact == "one_leg_up":
                    among = figure(rewarded(encoder, state[stands], goal, alpha), degrees[stands])
                    claim = f"{fact} among standing poses, {look}, alpha {alpha}: AUROC of “{goal}”"
                    row = {"claim": claim, "value": among.area, "unit": "AUROC", "n": int(stands.sum())}
                    table.append(row | {"interval": [among.low, among.high], "rank_correlation": among.rank})
    for (look, alpha, kind), found in means.items():
        count = f"{len(found)} goals, {kind} sentences"
        of_goals = {name: [each.area, each.rank] for name, each in found.items()}
        for what, column, unit in (("AUROC", 0, "AUROC"), ("rank correlation", 1, "Spearman")):
            value = float(np.mean([each[column] for each in found.values()]))
            row = {"claim": f"{count}, {look}, alpha {alpha}: mean {what}", "value": value, "unit": unit}
            table.append(row | {"n": len(renders[look].frames), "by_goal": of_goals})
    return table


def rewards(frames: int, knows: str) -> None:
    """Render, score, record."""
    encoder = embedded_encoder(knows=knows)
    size = encoder.image_size[0]
    renders = {
        look: render(["embodied/humanoid-stand-v0"], frames, seed=(SEED, k), image_size=size, own_look=share, workers=1)
        for k, (look, share) in enumerate(LOOKS.items())
    }
    table = reward_rows(encoder, renders)
    for row in table:
        print(f"{row['claim']}: {row['value']:.3f}")
    print(record("humanoid_reward", table))


# Nobody learns --------------------------------------------------------------------------------------------------


def untrained_rows(episodes: int) -> list[dict[str, Any]]:
    """A row a control, goal and way of acting: right at the end, and how much of the last second."""
    table = []
    for control, (goal, task) in product(CONTROLS, HUMANOID.items()):
        env = make(
            f"humanoid-{goal}", control=control, action_repeat=HOLD[control], max_episode_steps=100 // HOLD[control]
        )
        for way, width in (("a body that does nothing", 0.0), ("a body that acts at random", 1.0)):
            rng, ends = np.random.default_rng(0), []
            for seed in range(UNTRAINED_SEED, UNTRAINED_SEED + episodes):
                env.reset(seed=seed)
                over, info = False, {}
                while not over:
                    action = rng.uniform(-width, width, env.action_space.shape or ())
                    *_, over, info = env.step(action.astype(np.float32))
                ends.append((info["is_success"], info["judge/held"]))
            right, held = np.mean(ends, axis=0).tolist()
            claim = f"{control}, {task.fact}, {way}: right at the end"
            row = {"claim": claim, "value": right, "unit": "share of episodes"}
            row |= {"n": episodes, "interval": wilson_interval(round(right * episodes), episodes), "held": held}
            table.append(row)
        env.close()
    return table


# Policies -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """One training run."""

    goal: str
    way: str
    seed: int
    steps: int
    alpha: float
    encoder: str  # as `embodied train` takes it
    control: str  # torque or position

    @property
    def folder(self) -> Path:
        alpha = f"-alpha{self.alpha}" if self.alpha and self.way != "true" else ""
        return ROOT / self.control / self.encoder / str(self.steps) / self.goal / f"{self.way}{alpha}-s{self.seed}"

    @property
    def settings(self) -> list[str]:
        """Of `embodied train`."""
        words = [f"env=humanoid-{self.goal}", f"seed={self.seed}", f"steps={self.steps}", "videos=3", "eval_every=0"]
        hold = HOLD[self.control]
        words += [f"final_episodes={EPISODES}", f"env.action_repeat={hold}", f"env.max_episode_steps={100 // hold}"]
        words += [f"env.control={self.control}", f"env.cameras={CAMERAS}", *LEARNER[self.control]]
        if self.way == "true":
            return [*words, "reward=true"]
        captions = Captions.load(asset("humanoid") / "captions.yaml")
        told = sentence(captions, OTHER[self.goal] if self.way == "other" else self.goal)
        words += ["reward=clip", f"encoder={self.encoder}", f'reward.goal="{told}"', f"reward.alpha={self.alpha}"]
        return [*words, f'reward.baseline="{BASELINE}"'] if self.alpha else words

    def run(self) -> dict[str, Any]:
        """Train, unless it was done before; the last evaluation."""
        return train(self.folder, self.settings)


def policy_rows(results: dict[Job, dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a goal and way; a claim beside its control once all seeds are there."""
    table: list[dict[str, Any]] = []
    one = next(iter(results))  # all are of one control, encoder, length and alpha
    told = f"{one.control}, two cameras, encoder {one.encoder}, {one.steps:,} steps"
    told += f", alpha {one.alpha}" if one.alpha else ""
    for goal, task in HUMANOID.items():
        means: dict[str, float] = {}
        of = {job: result for job, result in results.items() if job.goal == goal}
        for way in dict.fromkeys(job.way for job in of):
            done = {job.seed: result for job, result in of.items() if job.way == way}
            rates = [done[seed]["success_rate"] for seed in sorted(done)]
            count, mean = EPISODES * len(rates), float(np.mean(rates))
            if set(done) == set(SEEDS):
                means[way] = mean
            table.append(
                {
                    "claim": f"{task.fact}, {way}, {told}: right at the end",
                    "value": mean,
                    "unit": "share of episodes",
                    "n": count,
                    "seeds": sorted(done),
                    "interval": wilson_interval(round(mean * count), count),
                    "by_seed": rates,
                    "held": [done[seed]["held"] for seed in sorted(done)],
                    "hold": HOLD[one.control],
                    "learner": LEARNER[one.control],
                }
            )
        if {"sentence", "other"} <= means.keys():
            value, control = means["sentence"], means["other"]
            met = value >= 0.8 and control <= value - 0.2
            claim = f"{task.fact}, {told}: from its sentence; control, another goal's sentence: {control:.2f}"
            table.append(
                {
                    "claim": claim, "value": value, "unit": "share of episodes", "bar": ">= 0.8, control 0.2 below",
                    "met": met, "seeds": list(SEEDS),
                }
            )  # fmt: skip
    return table


def policies(jobs: Sequence[Job], at_once: int, *, keep: bool) -> None:
    """Run what is missing, some at a time, recording after every run; what was recorded of others stays."""
    results = {job: job.run() for job in jobs if trained(job.folder) is not None}  # what was done before
    with ThreadPoolExecutor(at_once) as pool:
        futures = {pool.submit(job.run): job for job in jobs}
        for future in as_completed(futures):
            job = futures[future]
            results[job] = future.result()
            told = results[job]
            print(
                f"{job}: right at the end {told['success_rate']:.2f}, of the last second {told['held']:.2f}", flush=True
            )
            if keep:
                rows = {row["claim"]: row for row in load() if row["benchmark"] == "humanoid_policy"}
                record("humanoid_policy", (rows | {row["claim"]: row for row in policy_rows(results)}).values())


def main() -> None:
    """Measure and record one part."""
    options = read_options(
        {
            "part": "reward", "frames": 1500, "goals": list(HUMANOID), "ways": list(WAYS[:2]), "seeds": list(SEEDS),
            "steps": 10_000, "alpha": 0.0, "encoder": "town", "control": "position", "jobs": 2, "record": True,
        }
    )  # fmt: skip
    parts = ("reward", "policy", "untrained")
    for key, known in (("goals", HUMANOID), ("ways", WAYS), ("part", parts), ("control", CONTROLS)):
        given: Iterable[str] = [options[key]] if isinstance(options[key], str) else options[key]
        if unknown := set(given) - set(known):
            raise SystemExit(f"{key} must be among {', '.join(known)}; got {', '.join(sorted(unknown))}.")
    if options["part"] == "reward":
        rewards(options["frames"], "desk" if options["encoder"] == "embedded" else str(options["encoder"]))
        return
    if options["part"] == "untrained":
        print(record("humanoid_untrained", untrained_rows(EPISODES)))
        return
    jobs = [
        Job(goal, way, seed, options["steps"], options["alpha"], options["encoder"], options["control"])
        for seed in options["seeds"]
        for goal in options["goals"]
        for way in options["ways"]
    ]
    policies(jobs, options["jobs"], keep=options["record"])


if __name__ == "__main__":
    main()
