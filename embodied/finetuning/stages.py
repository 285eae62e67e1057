"""The stages of a fine-tuning over one run folder; each writes down what it found, and is not done twice.

config.yaml  run.json  labels.json
baseline/  imitate/  rollouts/  corrections/  chunked_rl/
    progress.csv  checkpoints/  policy/  execute.json  episodes.json
world/
    what `embodied.finetuning.imagining` keeps  policy/  execute.json  episodes.json
videos/  evaluation.json  report.html
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from embodied.datasets import Dataset
from embodied.datasets.windows import EncodedEpisode, Windows, names_of
from embodied.errors import UserError
from embodied.files import write_text
from embodied.finetuning import backbones, growing, imagining, inputs, judging, labels, ranking, worlds
from embodied.finetuning.outcomes import outcomes
from embodied.finetuning.rollouts import Played
from embodied.finetuning.training import POLICY, advance, train
from embodied.reports.video import OUTCOME, write_video
from embodied.runs import write_run
from embodied.training import evaluation
from policies.vla.choosing import BestOfN, load_acting, load_critic, save_critic
from policies.vla.chunked import ChunkedRL, ChunkedRLSettings
from policies.vla.core import CONFIG, ChunkPolicy
from policies.vla.critic import Outcomes

CHUNKED, WORLD = "chunked_rl", "world"
STAGES = ("imitate", "rollouts", "corrections", CHUNKED, WORLD)
RESTING = 0.1  # how often rows at an episode's rest are drawn beside others: they are many and alike
BASELINE, DATA, REFUSED = "baseline", "data", "refused"
BEGAN = "began.json"


@dataclass
class FinetuningRun:
    """One run's parts, each made when it is first needed.

    Attributes:
        config: of the run; `env` may be null, then nothing is evaluated, or a list of worlds.
        folder: of the run.
        encoder: frames to maps and vectors.
        plan: of the data.
    """

    config: DictConfig
    folder: Path
    encoder: Any
    plan: inputs.PolicyPlan

    @cached_property
    def say(self) -> Any:
        backbone = self.config.policy.backbone
        return inputs.Sentences(self.encoder) if backbone is None else backbones.prompts(str(backbone))

    @cached_property
    def eyes(self) -> dict[str, Any]:
        if self.config.policy.backbone is not None:
            return backbones.eyes(self.plan.cameras, backbones.chosen(self.config, self.device).size)
        for name in (BASELINE, *STAGES):  # those that a policy of this run was trained with
            if (self.folder / name / POLICY / CONFIG).is_file():
                return inputs.kept_eyes(ChunkPolicy.load(self.folder / name / POLICY), self.encoder)
        return inputs.make_eyes(
            self.plan, self.encoder, layer=self.config.policy.layer, channels=self.config.policy.channels
        )

    @cached_property
    def episodes(self) -> list[EncodedEpisode]:
        return inputs.read(self.plan, self.eyes)

    @cached_property
    def rows(self) -> Windows:
        return inputs.windows(self.episodes, self.plan, self.config.policy.horizon, self.say)

    @cached_property
    def labelled(self) -> tuple[labels.EpisodeLabels, labels.Teacher | None]:
        """The labels of the demonstrations, and who can label more."""
        found, teacher = labels.label(self.config, self.plan, self.encoder)
        write_text(self.folder / "labels.json", json.dumps(found.as_dict(), indent=2) + "\n")
        return found, teacher

    @cached_property
    def arenas(self) -> list[judging.Arena]:
        """Of each world that policies are judged in."""
        config = self.config
        return worlds.arenas(
            config, self.eyes, self.say, num_worlds=config.num_worlds, instruction=config.policy.instruction
        )

    @property
    def arena(self) -> judging.Arena:
        """Of the only world.

        Raises:
            UserError: there are several.
        """
        if len(self.arenas) > 1:
            told = ", ".join(arena.name for arena in self.arenas)
            raise UserError(f"This needs one world; the data come from several: {told}. Fine-tune on one dataset.")
        return self.arenas[0]

    @cached_property
    def sentences(self) -> list[str]:
        """Of the demonstrations, each once."""
        return list(dict.fromkeys(episode.instruction for episode in self.episodes))

    def unheard(self) -> list[str]:
        """Sentences that the policy is told when it is judged, and that no demonstration says."""
        told = list(dict.fromkeys(arena.told() for arena in self.arenas))
        return [sentence for sentence in told if sentence not in self.sentences]

    @property
    def held_out(self) -> np.ndarray:
        """(E,) bool: demonstrations that are watched and not learned from, the last ones of those that are imitated."""
        imitated = np.arange(len(self.episodes))
        if self.config.validation and self.config.labels.weights == labels.SOLVED:
            imitated = np.flatnonzero([word == labels.SOLVED for word in self.labelled[0].words])
        held_out = np.zeros(len(self.episodes), bool)
        held_out[imitated[max(len(imitated) - self.config.validation, 1) :]] = True
        return held_out

    def fresh(self) -> ChunkPolicy:
        """A policy that knows nothing yet, the same each time."""
        return inputs.new_policy(self.config, self.plan, self.eyes, self.encoder, self.rows).to(self.device)

    @property
    def device(self) -> torch.device:
        return backbones.device_of(self.config)

    def train(self, name: str, policy: ChunkPolicy, weights: np.ndarray, rows: Windows) -> ChunkPolicy:
        """Imitate into this run's folder of a name."""
        config, held_out = self.config, rows.rows_of(_padded(self.held_out, len(rows.episodes)))
        learned = np.where(_padded(self.held_out, len(rows.episodes))[rows.episode], 0.0, weights)
        learned = np.where(rows.resting, RESTING * learned, learned)
        rate = config.learning_rate
        if rate is None:
            rate = 1e-3 if config.policy.backbone is None else backbones.RATE
        with backbones.explained(), backbones.within_memory(config):
            return train(
                self.folder / name, policy, learned, rows, steps=config.steps, batch_size=config.batch_size,
                learning_rate=rate, seed=config.seed, held_out=held_out,
                checkpoint_every=config.checkpoint_every, log_every=config.log_every, name=name,
            )  # fmt: skip

    # Growing --------------------------------------------------------------------------------------------

    def grow(self, name: str, policy: ChunkPolicy, before: str) -> dict[str, Any]:
        """Gather more to imitate by acting; returns what there was, gathered now or before.

        Raises:
            UserError: no world to act in, or nobody who could accept what was done.
        """
        config, folder = self.config, self.folder / name
        file = folder / "gathered.json"
        if file.is_file():
            return json.loads(file.read_text("utf-8"))
        if config.env is None:
            raise UserError(f"stages=[{name}] needs a world to act in. Add env=… when the run is begun.")
        self._check_pace(name)
        _, teacher = self.labelled
        if name == "rollouts" and teacher is None:
            raise UserError("stages=[rollouts] needs the success reward to accept tries. Use labels.source=success.")
        for kind in (DATA, REFUSED):
            shutil.rmtree(folder / kind, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        execute, each = self.execute(before, policy), list[dict[str, Any]]()
        starts = {"starts": int(config.own.starts), "seed": int(config.seed)}
        for arena, root, refused in zip(self.arenas, self._roots(name, DATA), self._roots(name, REFUSED), strict=True):
            if name == "corrections":
                each.append(growing.corrected(arena, policy, execute, teacher, root=root, **starts))
            else:
                assert teacher is not None, "see above"
                each.append(
                    growing.own_tries(
                        arena, policy, execute, teacher, tries=config.own.tries, noise=config.own.noise, root=root,
                        refused=refused, **starts,
                    )
                )  # fmt: skip
        found = growing.summed(each)
        write_text(file, json.dumps(found) + "\n")
        return found

    def _check_pace(self, name: str) -> None:
        """Raises: UserError: a world of another rate, where what is done would be recorded at the policy's."""
        if wrong := worlds.off_pace(self.config, self.plan.fps):
            raise UserError(f"stages=[{name}] needs a world of the policy's rate; {wrong[0]}")

    def _roots(self, name: str, kind: str) -> list[Path]:
        """Where a stage writes a kind of dataset: one of each world."""
        root = self.folder / name / kind
        names = worlds.names(self.config)
        return [root] if len(names) == 1 else [root / each.replace(" ", "-") for each in names]

    def sources(self, names: Sequence[str], kind: str = DATA) -> list[inputs.DataSource]:
        """The datasets that stages wrote: what is imitated, or what was refused."""
        found = [Dataset(root) for name in names for root in self._roots(name, kind) if root.is_dir()]
        return [inputs.DataSource(dataset, names_of(dataset)) for dataset in found]

    def grown(self, names: Sequence[str], weights: np.ndarray) -> tuple[Windows, np.ndarray]:
        """The demonstrations' rows and those that stages gathered, and how much each is imitated."""
        rows = self.windows_with(self.sources(names))
        return rows, np.concatenate([weights, rows.usable[len(weights) :].astype(np.float64)])

    def windows_with(self, more: Sequence[inputs.DataSource]) -> Windows:
        """The demonstrations' rows, and after them those of other datasets."""
        read = inputs.read(replace(self.plan, sources=tuple(more)), self.eyes, desc="encoding") if more else []
        return inputs.windows([*self.episodes, *read], self.plan, self.config.policy.horizon, self.say)

    # Chunked RL -----------------------------------------------------------------------------------------

    def _begin(self, name: str, before: str) -> None:
        """Write down from which stage's policy a late stage goes on; see `began_from`."""
        (self.folder / name).mkdir(parents=True, exist_ok=True)
        write_text(self.folder / name / BEGAN, json.dumps({"from": before}) + "\n")

    def learn(
        self, policy: ChunkPolicy, weights: np.ndarray, gathered: Sequence[str], before: str
    ) -> ChunkPolicy | BestOfN:
        """Chunked RL from a policy that was imitated, on what was demonstrated, gathered and refused.

        Args:
            policy: of the stage before; it is not changed.
            before: that stage's name.
            weights: of the demonstrations' rows.
            gathered: stages that gathered more.

        Raises:
            UserError: rates that differ, or no episodes to tell apart.
        """
        config, folder = self.config, self.folder / CHUNKED
        if (folder / POLICY / CONFIG).is_file():
            return load_acting(folder / POLICY)
        self._begin(CHUNKED, before)
        own, refused = self.sources(gathered), self.sources(gathered, REFUSED)
        more = [*own, *refused]
        rows = self.windows_with(more)
        if any(each.ratio != 1 for each in rows.episodes):
            raise UserError("stages=[chunked_rl] needs data of the policy's own rate. Leave policy.fps out.")
        imitated = rows.usable.astype(np.float64)
        imitated[: len(weights)] = weights
        imitated[rows.episode >= len(rows.episodes) - sum(len(source.dataset) for source in refused)] = 0
        held_out = _padded(self.held_out, len(rows.episodes))
        try:
            learner = ChunkedRL(
                copy.deepcopy(policy), rows.batch, self.outcomes(more), np.where(held_out[rows.episode], 0.0, imitated),
                ~held_out[rows.episode], settings=chunked_settings(config), seed=config.seed,
            )  # fmt: skip
        except ValueError as error:
            raise UserError(f"stages=[chunked_rl]: {error}") from error
        watched = rows.rows_of(held_out)
        advance(
            folder, learner, learner.step,
            lambda: {"validation/error": learner.actor.error(watched)} if learner.actor and len(watched) else {},
            checkpoint_every=config.checkpoint_every, log_every=config.log_every, name=CHUNKED,
        )  # fmt: skip
        acting = learner.result()
        save_critic(folder, learner.critic, {})
        acting.save(folder / POLICY)
        return acting

    def outcomes(self, more: Sequence[inputs.DataSource]) -> Outcomes:
        """What the rows of the demonstrations, and of other datasets after them, led to."""
        found, teacher = self.labelled
        return outcomes([*self.plan.sources, *more], found.words, teacher, self.encoder, self.plan.cameras)

    def ranked(self, policy: ChunkPolicy, before: str) -> dict[str, Any] | None:
        """How the critic ranks chunks of the policy it was learned for; None without a world, or where not asked."""
        config, file = self.config, self.folder / CHUNKED / "ranking.json"
        if file.is_file():
            return json.loads(file.read_text("utf-8"))
        if config.env is None or not config.evaluate or not config.ranked.moments:
            return None
        critic, _ = load_critic(self.folder / CHUNKED)
        chooser = BestOfN(policy, critic.to(policy.device), count=1, deviation=config.rl.deviation, seed=config.seed)
        execute, rows = self.execute(before, policy), list[dict[str, Any]]()
        for arena in self.arenas:
            rows += ranking.rank(
                arena, chooser, execute, moments=config.ranked.moments, chunks=config.ranked.chunks,
                deviation=config.rl.deviation, seed=config.seed,
            )["table"]  # fmt: skip
        found = ranking.ranked(np.array([row["scores"] for row in rows]), np.array([row["success"] for row in rows]))
        write_text(file, json.dumps(found) + "\n")
        return found

    # Practising -----------------------------------------------------------------------------------------

    def practise(self, policy: ChunkPolicy, before: str, say: Callable[[str], None]) -> ChunkPolicy:
        """Practise in a learned world, from the policy of a stage; what stands executes as many steps as that one.

        Raises:
            UserError: as `imagining.stage`.
        """
        folder = self.folder / WORLD
        if (folder / POLICY / CONFIG).is_file():
            return ChunkPolicy.load(folder / POLICY).to(self.device)
        self._check_pace(WORLD)
        self._begin(WORLD, before)
        execute = self.execute(before, policy)
        found = imagining.stage(self, folder, self.folder / before / POLICY, execute, say)
        if (self.folder / before / "execute.json").is_file():
            shutil.copy(self.folder / before / "execute.json", folder / "execute.json")
        return found

    # Judging --------------------------------------------------------------------------------------------

    def judge(self, name: str, policy: ChunkPolicy | BestOfN) -> list[dict[str, Any]] | None:
        """A policy's episodes on the starts that choose nothing; None where there is no world, or nobody asks.

        Films that are asked for now, and were not when it was judged, are made now.
        """
        config, file = self.config, self.folder / name / "episodes.json"
        if config.env is None or not config.evaluate:
            return None
        first, count = config.seed + evaluation.FINAL, config.eval_episodes * len(self.arenas)
        seeds = list(range(first, first + config.eval_episodes))
        film = seeds[: config.videos]
        execute = self.execute(name, policy)
        rows = json.loads(file.read_text("utf-8")) if file.is_file() else []
        if len(rows) == count:
            if len([*self._films(name)]) < len(film) * len(self.arenas):
                self._film(name, judging.play_all(self.arenas, policy, execute, film, desc=f"{name}: films", film=film))
            return rows
        played = judging.play_all(self.arenas, policy, execute, seeds, desc=f"{name}: evaluation", film=film)
        rows = judging.as_rows(played)
        write_text(file, json.dumps(rows) + "\n")
        self._film(name, played)
        return rows

    def _films(self, name: str) -> Iterator[Path]:
        return (self.folder / "videos").glob(f"*_{name}_*.mp4")

    def _film(self, name: str, played: Sequence[Played]) -> None:
        """Write the films of some episodes, in place of those of another time."""
        (self.folder / "videos").mkdir(exist_ok=True)
        for old in self._films(name):
            old.unlink()
        for i, each in enumerate(each for each in played if each.pictures):
            word = OUTCOME[each.success]
            write_video(self.folder / "videos" / f"{i}_{name}_{word}.mp4", each.pictures, each.rewards,
                        title=" · ".join(filter(None, (name, each.world, f"start {each.seed}", word))))  # fmt: skip

    def execute(self, name: str, policy: ChunkPolicy | BestOfN) -> int:
        """How many steps of a chunk a policy of this run executes."""
        config = self.config
        if config.execute is not None:
            return int(config.execute)
        first = config.seed + judging.CHOOSING
        seeds = range(first, first + config.choose_episodes)
        file = self.folder / name / "execute.json"
        return judging.choose_execute(self.arenas, policy, seeds, file, desc=f"{name}: choosing")

    def conclude(self, results: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
        """Write evaluation.json: every policy's summary, the last one against the one before it, and which is kept.

        It is the last one; of chunked RL only where the paired test says that it is better, and of what came after
        imitation never where it says that it is worse.
        """
        names = list(results)
        found: dict[str, Any] = {"policy": names[-1], "seed": int(self.config.seed + evaluation.FINAL)}
        found["summaries"] = {each: judging.summary(results[each]) for each in names}
        for each in names:
            for world, rows in judging.by_world(results[each]).items():
                found["summaries"][each].setdefault("worlds", {})[world] = judging.summary(rows)
        found["execute"] = {}
        for each in names:
            file = self.folder / each / "execute.json"
            tried = json.loads(file.read_text("utf-8")) if file.is_file() else {}
            best = max(tried, key=lambda key: (tried[key], int(key))) if tried else str(self.config.execute)
            found["execute"][each] = {
                "chosen": int(best) if best != "None" else self.config.policy.horizon,
                "tried": tried,
            }
        if len(names) > 1:
            found["compared"] = {"before": names[-2], "after": names[-1]}
            found["compared"] |= judging.compare(results[names[-2]], results[names[-1]]) or {"p": None}
            wanting = (
                not judging.better(found["compared"]) if names[-1] == CHUNKED else judging.worse(found["compared"])
            )
            if wanting and names[-1] != "imitate":
                found["policy"] = names[-2]
        found |= found["summaries"][found["policy"]]
        write_text(self.folder / "evaluation.json", json.dumps(found, indent=2) + "\n")
        write_run(self.folder, policy=found["policy"], execute=found["execute"][found["policy"]]["chosen"])
        return found


def began_from(folder: Path, name: str) -> str | None:
    """The stage from whose policy a run's late stage went on; None where it was not begun, or by an older version.

    Args:
        folder: of the run.
        name: of the stage.
    """
    file = folder / name / BEGAN
    return json.loads(file.read_text("utf-8"))["from"] if file.is_file() else None


def chunked_settings(config: DictConfig) -> ChunkedRLSettings:
    """The settings of chunked RL of a config.

    Raises:
        UserError: one that cannot be.
    """
    values: Any = OmegaConf.to_container(config.rl)
    try:
        return ChunkedRLSettings(**values)
    except ValueError as error:
        raise UserError(f"rl: {str(error).removeprefix('ChunkedRLSettings: ')}") from error


def _padded(values: np.ndarray, count: int) -> np.ndarray:
    """Held-out flags of more episodes than the demonstrations: own rollouts are never held out."""
    return np.concatenate([values, np.zeros(count - len(values), bool)])
