"""Policies from what a robot has: own readings and where the named things are in its cameras, never simulator state.

Every run is RLPD with its defaults. `sentence` learns from the sentence alone; `unseen` from a wording that the encoder
never met; `true` from the task's own reward, the same observation; `other` from another task's sentence, the control
that must fail. In hard tasks policies see the
wrist's camera beside the two that the reward reads: `demos` begins from ten expert episodes beside the sentence's
reward; its controls are `imitation`, the same demonstrations imitated alone, and `alone`, the sentence without them.
`places` imitates the same demonstrations by the places that they teach it to look for (`env.obs=places`); `residual`
corrects that policy by the sentence's reward. Success is judged on held-out episodes, at the last step. What is
finished is not run again.

    python -m benchmarks.learners                            # all, two at a time: 4 to 20 minutes a run
    python -m benchmarks.learners only=desk-drawer,desk-press jobs=1
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import load, read_options, record, success_row, train, trained

ROOT = Path("runs", "benchmarks", "learners")
SEEDS = (0, 1, 2)
EPISODES = 64
STEPS, HARD_STEPS = 10_000, 20_000
SENTENCES = {
    "desk-drawer": "the drawer is open",
    "desk-press": "the button is pressed",
    "desk-close": "the drawer is closed",
    "desk-reach": "the gripper touches the red cube",
    "reacher-red": "the tip of the arm touches the red ball",
}
UNSEEN = {  # test wordings of sim_assets/*/captions.yaml
    "desk-drawer": "the drawer has been left open",
    "desk-press": "give the button a push",
    "desk-close": "the drawer has been left closed",
}
OTHERS = {
    "desk-drawer": "the button is pressed",
    "desk-press": "the drawer is open",
    "desk-close": "the drawer is open",
    "desk-reach": "the drawer is open",
    "reacher-red": "the tip of the arm touches the blue ball",
}
HARD = {
    "desk-place": "the red cube is in the tray",
    "desk-lift": "the red cube is lifted",
    "desk-push": "the red cube is on the yellow mark",
}
BAR = 0.9  # of hard tasks
PLACES = ("places", "residual")  # ways whose policies see places, not points
TWO = ["env.cameras=[front,side]"]
NOT = "the gripper does not touch the red cube"  # one camera cannot tell touching from standing in the line of sight
AGAINST = ["reward=contrast", f'reward.negative="{NOT}"', "reward.views=mean"]


@dataclass(frozen=True)
class Job:
    """One training run."""

    env: str
    way: str
    seed: int

    @property
    def settings(self) -> list[str]:
        """Of `embodied train`."""
        goal = {"other": OTHERS, "unseen": UNSEEN}.get(self.way, {**SENTENCES, **HARD})[self.env]
        words = [f"env={self.env}", f"seed={self.seed}", f"final_episodes={EPISODES}", "videos=1", "eval_every=0"]
        against = self.env == "desk-reach" and self.way == "sentence"
        paid = AGAINST if against else ["reward=clip"]
        words += ["reward=true"] if self.way == "true" else [*paid, f'reward.goal="{goal}"']
        if self.env in SENTENCES:
            return [*words, *(TWO if self.env == "desk-reach" else []), f"steps={STEPS}"]
        words += TWO if self.way == "alone" else [*TWO, "demos=10"]
        if self.way in PLACES:  # in eight steps nothing is corrected yet
            steps = HARD_STEPS if self.way == "residual" else 8
            return [*words, "env.obs=places", "policy=residual", f"steps={steps}"]
        return [*words, "policy=imitation", "steps=8"] if self.way == "imitation" else [*words, f"steps={HARD_STEPS}"]

    @property
    def folder(self) -> Path:
        return ROOT / self.env / f"{self.way}-s{self.seed}"

    def run(self) -> dict[str, Any]:
        """Train, unless it was done before; the last evaluation, with what the policy saw."""
        result = train(self.folder, self.settings)
        return result | {"observation": json.loads((self.folder / "run.json").read_text())["observation"]}


def ways(env: str) -> tuple[str, ...]:
    """The runs of a task, those that judge its claim last."""
    if env in SENTENCES:
        return ("sentence", "true", "other", *(["unseen"] if env in UNSEEN else []))
    return ("demos", "imitation", "alone", "places", "residual")


def rows(results: dict[Job, dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a task and way; each claim beside its control, once all seeds are there, now or on record."""
    table: list[dict[str, Any]] = []
    recorded = {row["claim"]: row for row in load() if row["benchmark"] == "learners"}
    for env in (*SENTENCES, *HARD):
        means: dict[str, float] = {}
        for way in ways(env):
            done = {job.seed: result for job, result in results.items() if (job.env, job.way) == (env, way)}
            seen = next(iter(done.values()))["observation"] if done else "places" if way in PLACES else "points"
            claim = f"{env}, {way}, observation {seen}: success at the end"
            row = success_row(claim, done, EPISODES) if done else recorded.get(claim)
            if row is None:
                continue
            if len(row["seeds"]) == len(SEEDS):
                means[way] = row["value"]
            table.append(row)
        for row in claims(env, means):
            kept = recorded.get(row["claim"], {})
            table.append(kept if kept.get("value") == row["value"] else row)
    return table


def claims(env: str, means: dict[str, float]) -> list[dict[str, Any]]:
    """What a task's means say; a bar whose control passes proves nothing, and is not met."""
    if env in SENTENCES:
        table = []
        for way, told in (("sentence", "the sentence"), ("unseen", "an unseen wording")):
            if not {way, "true", "other"} <= means.keys():
                continue
            ratio, control = means[way] / max(means["true"], 1e-9), means["other"]
            table.append(
                {
                    "claim": f"{env}: {told} against the task's own reward; control, another sentence: {control:.2f}",
                    "value": ratio,
                    "unit": "ratio",
                    "bar": ">= 0.9, control <= 0.2",
                    "met": means["true"] > 0 and ratio >= 0.9 and control <= 0.2,
                    "seeds": list(SEEDS),
                }
            )
        return table
    if env in HARD and {"demos", "imitation"} <= means.keys():
        value, control = means["demos"], means["imitation"]
        claim = f"{env}: a sentence and ten demonstrations; control, imitation alone: {control:.2f}"
        claim += f"; the sentence alone: {means['alone']:.2f}" if "alone" in means else ""
        met = value >= BAR and max(control, means.get("alone", 0.0)) <= value - 0.2
        return [
            {
                "claim": claim,
                "value": value,
                "unit": "share",
                "bar": f">= {BAR}, controls 0.2 below",
                "met": met,
                "seeds": list(SEEDS),
            }
        ]
    return []


def main() -> None:
    """Run what is missing, some at a time, recording after every run."""
    options = read_options({"jobs": 2, "only": "", "ways": "", "record": True})
    only, chosen = ([word for word in options[name].split(",") if word] for name in ("only", "ways"))
    wanted = [env for env in (*SENTENCES, *HARD) if not only or env in only]
    every = [Job(env, way, seed) for env in (*SENTENCES, *HARD) for seed in SEEDS for way in ways(env)]
    jobs = [job for job in every if job.env in wanted and (not chosen or job.way in chosen)]
    results = {job: job.run() for job in every if trained(job.folder) is not None}  # what was done before
    with ThreadPoolExecutor(options["jobs"]) as pool:
        futures = {pool.submit(job.run): job for job in jobs}
        for future in as_completed(futures):
            job = futures[future]
            results[job] = future.result()
            print(f"{job}: success {results[job]['success_rate']:.2f}", flush=True)
            if options["record"]:
                record("learners", rows(results))


if __name__ == "__main__":
    main()
