"""The rewards that are judged: made for one task, and held against its episodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from omegaconf import DictConfig

from embodied.building.build import build
from embodied.building.goals import fitted_model, with_goal
from embodied.building.scorers import COMPOSED, Shared, episode_frames, reward_name, scorer_of
from embodied.datasets.encoding import LaterEpisode
from embodied.errors import UserError
from embodied.judging.cases import in_memory, showing
from embodied.judging.figures import Case, Division
from embodied.judging.judgement import Judged, controls, divide, films, judge
from embodied.literal import literal_config, resolved
from rewards.core import Encoder, Episode, Scorer
from rewards.phrases import plain
from rewards.progress import tqdm


class TaskRewards:
    """The episodes of one instruction, and the rewards that judge them.

    Attributes:
        division: which of them serves what.
        scorers: name -> the reward of this task, once it has judged.
        probes: some of the judged cases, for the other tasks' rewards.
    """

    def __init__(
        self,
        config: DictConfig,
        encoder: Encoder,
        cameras: Sequence[str],
        instruction: str,
        cases: Sequence[Case],
        env: Mapping[str, Any] | None,
        asked: Sequence[Case],
        shared: Shared,
    ) -> None:
        self._shared = shared
        self._config, self._encoder, self._cameras = config, encoder, cameras
        self._instruction, self._env = instruction, env
        self.scorers: dict[str, Scorer] = {}
        self.probes: list[Case] = []
        self._parts = reward_parts(config, instruction)
        wanted = 0 if env is not None else max(map(demos_wanted, self._parts.values()))
        self.division = divide(cases, demos=wanted, share=config.fit, seed=config.seed)
        if config.counterfactual is False:
            self.division.counterfactual.clear()
        self.division.counterfactual.extend(asked)
        if wanted > len(self.division.demos):
            told = f" of {instruction!r}" if instruction else ""
            raise UserError(
                f"reward.demos must be at most half of the data's successes{told}, {len(self.division.demos)}; got "
                f"{wanted}. Give demonstrations of their own: reward.demos=FOLDER."
            )

    def judged(self) -> list[Judged]:
        """Every reward on this task, then the controls."""
        config, encoder = self._config, self._encoder
        demos = self._demonstrations()
        scorers = make_scorers(self._parts, encoder, self._env, demos, self._cameras, self._shared)
        others = [str(goal) for goal in config.wrong or [] if plain(str(goal)) != plain(self._instruction)]
        wrong = [
            make_scorers(with_other_goal(self._parts, goal), encoder, self._env, (), self._cameras) for goal in others
        ]
        division = self.division
        read = max((scorer.frames_read for scorer in scorers.values()), key=("none", "first", "all").index)
        if read != "none":  # pasted episodes have features alone
            kept = [case for case in division.counterfactual if isinstance(case.episode, LaterEpisode)]
            division.counterfactual[:] = kept
            division = replace(
                division,
                fit=showing(division.fit, read),
                judged=showing(division.judged, read),
                counterfactual=showing(division.counterfactual, read),
            )
        self.scorers, self.probes = scorers, division.judged[: config.confusion]
        return judge_all(scorers, encoder, wrong, division, config)

    def _demonstrations(self) -> list[Episode]:
        """Successes that are not judged, for parts that ask for a number of them."""
        demos = self.division.demos
        if demos and any(demos_wanted(part) and episode_frames(part) == "all" for part in self._parts.values()):
            demos = showing(demos, "all")
        return [in_memory(case.episode) for case in demos]


def judge_all(
    scorers: Mapping[str, Scorer],
    encoder: Encoder,
    wrong: Sequence[Mapping[str, Scorer]],
    division: Division,
    config: DictConfig,
) -> list[Judged]:
    """Every reward, then the controls.

    Raises:
        UserError: a reward that cannot score an episode, by its name.
    """
    control, result = controls(encoder), []
    wrongs = {name: [each[name] for each in wrong if name in each] for name in (*scorers, *control)}
    total = sum(films(division, wrong=len(each), canary_films=config.canaries) for each in wrongs.values())
    with tqdm(total=total, desc="judging", unit="episode") as bar:
        for name, scorer in {**scorers, **control}.items():
            bar.set_postfix_str(name)
            try:
                result.append(
                    judge(
                        name,
                        scorer,
                        division,
                        wrong=wrongs[name],
                        control=name in control,
                        canary_films=config.canaries,
                        resamples=config.resamples,
                        seed=config.seed,
                        tick=bar.update,
                    )
                )
            except (FloatingPointError, ValueError, KeyError) as error:
                raise UserError(f"reward {name}: {error}") from error
    return result


def reward_parts(config: DictConfig, instruction: str) -> dict[str, dict[str, Any]]:
    """Name -> config of each reward, judged one by one; a goal that is left open is the task's instruction."""
    reward = with_goal(resolved(config.reward), instruction or None)
    return dict(reward["parts"]) if reward["_target_"] == COMPOSED else {reward_name(reward): reward}


def make_scorers(
    parts: Mapping[str, dict[str, Any]],
    encoder: Encoder,
    env: Mapping[str, Any] | None,
    demos: Sequence[Episode],
    cameras: Sequence[str],
    shared: Shared | None = None,
) -> dict[str, Scorer]:
    """Each part as a scorer of its own.

    Args:
        parts: plain configs; texts in them are taken as they stand.
        encoder: whose features they read.
        env: the world's config, plain, which gives demonstrations and calibration; None: `demos` gives them.
        demos: successes that are not judged; for parts that ask for a number of them.
        cameras: the views they are shown.
        shared: with the same parts for other goals; see `embodied.building.scorers.make_scorer`.
    """
    shared = shared or Shared()
    given, rest = {}, dict(parts)
    if env is None:
        given = {name: part for name, part in parts.items() if demos_wanted(part)}
        rest = {name: part for name, part in parts.items() if name not in given}
    made = {
        name: build({k: v for k, v in part.items() if k != "demos"}, encoder=encoder, demos=demos[: demos_wanted(part)])
        for name, part in given.items()
    }
    config = literal_config({} if env is None else {"env": dict(env)})
    for name, part in rest.items():
        of_part = replace(shared, fits={"": shared.fits.setdefault(name, {})})
        made[name] = scorer_of(part, encoder, config, views=cameras, shared=of_part)
    return {name: made[name] for name in parts}


def demos_wanted(part: Mapping[str, Any]) -> int:
    """How many demonstrations a part asks for by number."""
    wanted = part.get("demos")
    return wanted if isinstance(wanted, int) and fitted_model(part) is None else 0


def with_other_goal(parts: Mapping[str, dict[str, Any]], goal: str) -> dict[str, dict[str, Any]]:
    """The parts that take one goal and were not shown what to do, with another goal."""
    return {
        name: part | {"goal": goal}
        for name, part in parts.items()
        if part.get("goal") is not None and part.get("demos") is None and fitted_model(part) is None
    }
