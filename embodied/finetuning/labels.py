"""Which demonstrations to imitate, and how much of each: what our rewards say of them, from pixels.

    solved     episodes that the success reward accepts at their end, and no others
    progress   rows that lead forward by a process reward (LeRobot's reward-aligned behaviour cloning), of all episodes
    uniform    everything

Shape letters: N rows of all episodes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from embodied.building.goals import OF_GOAL, of_other_tasks
from embodied.datasets import Dataset
from embodied.datasets.encoding import encode
from embodied.datasets.windows import Windows
from embodied.errors import UserError
from embodied.finetuning.inputs import DataSource, PolicyPlan, open_source
from embodied.judging.quality import grades
from embodied.scoring.labelling import instructions
from policies.vla.weights import progress_weights
from rewards.calibration import UNSURE, Quality
from rewards.core import Episode, Features
from rewards.phrases import as_worded, plain
from rewards.process import process_scorer
from rewards.success import SuccessClassifier, fit_success

SOLVED, NOT, ABSTAINED = "solved", "not", "abstained"
SOURCES, WEIGHTS = ("success", "recorded", "all"), ("solved", "progress", "uniform")
TAUGHT = 10  # solved episodes of each sentence that a process reward is fitted to
Label = str


@dataclass(frozen=True)
class EpisodeLabels:
    """What is said of every episode, and by whom.

    Attributes:
        words: solved, not or abstained, of each episode.
        said_by: "person" (recorded, and shown to the success model) or "success", of each; or "recorded".
        quality: sentence -> of its success model on episodes it was not fitted to; None without one.
    """

    words: tuple[Label, ...]
    said_by: tuple[str, ...]
    quality: Mapping[str, Quality] | None = None

    def count(self, word: Label) -> int:
        return sum(each == word for each in self.words)

    def told(self) -> str:
        """In a line."""
        solved, unsolved, unsure = (self.count(word) for word in (SOLVED, NOT, ABSTAINED))
        people = self.said_by.count("person")
        by = {"recorded": "recorded", "all": "not asked"}.get(self.said_by[0], "success")
        known = f"; a person labelled {people} of them" if people else ""
        return f"{by}: {solved} solved, {unsolved} not, {unsure} unsure{known}"

    def as_dict(self) -> dict[str, Any]:
        quality = None if self.quality is None else {goal: each.as_dict() for goal, each in self.quality.items()}
        return {"words": list(self.words), "said_by": list(self.said_by), "quality": quality}


def check_labels(config: DictConfig) -> None:
    """Refuse settings that cannot be, before anything is read.

    Raises:
        UserError: so.
    """
    labels = config.labels
    for name, value, known in (("source", labels.source, SOURCES), ("weights", labels.weights, WEIGHTS)):
        if value not in known:
            raise UserError(f"labels.{name} must be one of {', '.join(known)}; got {value!r}.")
    if labels.source == "all" and labels.weights == "solved":
        raise UserError("labels.weights must not be solved where labels.source=all says nothing. Try uniform.")
    if labels.known < 0 or labels.hold < 1:
        raise UserError(f"labels.known must be 0 or more, and labels.hold 1; got {labels.known} and {labels.hold}.")
    if labels.quality is not None and (labels.source == "all" or (labels.source == "success" and labels.model)):
        raise UserError("labels.quality must be left out where labels.source=all or labels.model ask nobody's word.")
    if labels.kappa < 0:
        raise UserError(f"labels.kappa must be 0 or more; got {labels.kappa}.")


def check_data(config: DictConfig, planned: PolicyPlan) -> None:
    """Refuse data that do not tell what they are asked, before a run is begun.

    Raises:
        UserError: so.
    """
    labels = config.labels
    graded = labels.source == "success" and labels.quality is not None and labels.labelled is None
    for source in planned.sources if labels.source == "recorded" or graded else ():
        recorded(source.dataset, labels.quality)


class Teacher:
    """The success reward that labels episodes of these cameras: fitted before, or to labelled episodes now.

    Args:
        encoder: embeds frames and texts.
        heads: sentence -> the detector of its task; of one alone, it judges whatever the sentence.
    """

    def __init__(self, encoder: Any, heads: Mapping[str, SuccessClassifier]) -> None:
        self.encoder, self.heads = encoder, dict(heads)

    @property
    def head(self) -> SuccessClassifier:
        """The only detector.

        Raises:
            UserError: there are several.
        """
        if len(self.heads) > 1:
            raise UserError(f"This needs demonstrations of one task; they are of several: {_quoted(self.heads)}.")
        return next(iter(self.heads.values()))

    def head_of(self, sentence: str) -> SuccessClassifier:
        """The detector of a task.

        Raises:
            UserError: there are several, and none is of it.
        """
        if len(self.heads) == 1:
            return self.head
        sentence = as_worded(sentence, self.heads)
        if sentence not in self.heads:
            raise UserError(
                f"labels: the success models are of {_quoted(self.heads)}; none can judge “{sentence}”. Label some "
                "episodes of it."
            )
        return self.heads[sentence]

    def words(self, episodes: Sequence[Episode]) -> list[Label]:
        """Of encoded episodes."""
        return [self._word(self.head_of(episode.instruction), episode.features) for episode in episodes]

    def word(self, frames: Mapping[str, np.ndarray], sentence: str) -> Label:
        """Of an episode's pictures, camera -> (T, H, W, 3) uint8, which was to do what the sentence says."""
        views = {name: self.encoder.encode_images(torch.from_numpy(each))[None] for name, each in frames.items()}
        return self._word(self.head_of(sentence), Features(views=views))

    def rewards(self, episode: Episode) -> np.ndarray:
        """(T,) of each frame of an encoded episode: 1 where success holds, else 0."""
        head = self.head_of(episode.instruction)
        return head.decision.rewards(head.verdicts(episode.features))[0][0].double().cpu().numpy()

    def _word(self, head: SuccessClassifier, features: Features) -> Label:
        verdicts = head.verdicts(features)
        if float(head.decision.rewards(verdicts)[0][0, -1]) == 1:
            return SOLVED
        return ABSTAINED if int(verdicts[0, -1]) == UNSURE else NOT


def _quoted(sentences: Iterable[str]) -> str:
    return ", ".join(f"“{sentence}”" for sentence in sentences)


def encoded(source: DataSource, encoder: Any, cameras: Sequence[str], quality: str | None = None) -> list[Episode]:
    """Episodes of a dataset by their vectors, views called as the policy calls them; `quality` as of `recorded`."""
    names = [source.names.cameras[name] for name in cameras if name in source.names.cameras]
    back = {source.names.cameras[name]: name for name in cameras if name in source.names.cameras}
    episodes = encode(source.dataset, encoder, cameras=names)
    said = [each.success for each in episodes] if quality is None else recorded(source.dataset, quality)
    return [
        Episode(
            features=Features(views={back[k]: v for k, v in each.features.views.items()}),
            instruction=each.instruction, success=success, steps=each.steps,
        )
        for each, success in zip(episodes, said, strict=True)
    ]  # fmt: skip


def make_teacher(config: DictConfig, planned: PolicyPlan, encoder: Any, known: Sequence[Episode]) -> Teacher:
    """The success reward of a config: a fitted one, or one of each task, fitted to labelled episodes of it.

    Args:
        config: of the run.
        planned: whose cameras are read.
        encoder: of frames and texts.
        known: episodes of the data that a person labelled; those of `labels.labelled` take their place.

    Raises:
        UserError: it cannot be fitted; says what is missing.
    """
    labels = config.labels
    if labels.model is not None:
        texts = (text for source in planned.sources for text in instructions(source.dataset))
        if told := of_other_tasks({"_target_": OF_GOAL[0], "model": str(labels.model)}, texts):
            print(told, file=sys.stderr)
        return Teacher(encoder, {"": SuccessClassifier.load(labels.model, encoder)})
    shown = list(known)
    if labels.labelled is not None:
        source = open_source(config, str(labels.labelled), setting="labels.labelled")
        shown = encoded(source, encoder, planned.cameras, labels.quality)
    tasks: dict[str, list[Episode]] = {}
    for each in shown:
        tasks.setdefault(as_worded(each.instruction, tasks), []).append(each)
    heads = {}
    for goal, of_it in tasks.items() or {"": shown}.items():
        try:
            heads[goal] = fit_success(
                of_it, encoder=encoder, goal=goal or None, hold=labels.hold, precision=labels.precision
            )
        except ValueError as error:
            told = f" of “{goal}”" if len(tasks) > 1 else ""
            raise UserError(
                f"labels: the success model cannot be fitted to {len(of_it)} labelled episodes{told}: {error} "
                "More of them: labels.known=N or labels.labelled=DATASET. Or labels.source=recorded, which takes the "
                "dataset's own word."
            ) from error
    return Teacher(encoder, heads)


def label(config: DictConfig, planned: PolicyPlan, encoder: Any) -> tuple[EpisodeLabels, Teacher | None]:
    """What is said of every episode of the plan's datasets, and who says so.

    Raises:
        UserError: a source that the data do not have.
    """
    labels = config.labels
    count = sum(len(source.dataset) for source in planned.sources)
    if labels.source == "all":
        return EpisodeLabels((SOLVED,) * count, ("all",) * count), None
    if labels.source == "recorded":
        said = [word for source in planned.sources for word in recorded(source.dataset, labels.quality)]
        words = {True: SOLVED, False: NOT, None: ABSTAINED}
        return EpisodeLabels(tuple(words[each] for each in said), ("recorded",) * count), None
    own = labels.model is None and labels.labelled is None
    cameras, graded = planned.cameras, labels.quality if own else None
    episodes = [each for source in planned.sources for each in encoded(source, encoder, cameras, graded)]
    known, seen = list[int](), dict[str, int]()
    for k, each in enumerate(episodes if own else []):
        task = as_worded(each.instruction, seen)
        seen[task] = seen.get(task, 0) + 1
        if seen[task] <= labels.known and each.success is not None:
            known.append(k)
    if own and not known:
        raise UserError(
            "labels: the success model needs labelled episodes; the data tell success of none (next.success). Give "
            "labels.quality=COLUMN, labels.model=FOLDER (embodied fit reward=success), labels.labelled=DATASET, or "
            "labels.source=all labels.weights=uniform to imitate everything."
        )
    teacher = make_teacher(config, planned, encoder, [episodes[k] for k in known])
    words = teacher.words(episodes)
    for k in known:
        words[k] = SOLVED if episodes[k].success else NOT
    said = tuple("person" if k in set(known) else "success" for k in range(len(episodes)))
    quality = {goal: head.quality for goal, head in teacher.heads.items() if head.quality is not None}
    return EpisodeLabels(tuple(words), said, quality or None), teacher


def recorded(dataset: Dataset, quality: str | None) -> list[bool | None]:
    """Whether each episode ended well by the dataset's own word; None where it does not tell.

    Args:
        dataset: that has `next.success`, or the column.
        quality: a column that grades episodes (`embodied.judging.quality`) in its place; None: next.success.

    Raises:
        UserError: no such column, or one that tells nobody's success.
    """
    if quality is not None:
        said = [None if grade is None else grade.success for grade in grades(dataset, quality)]
        if all(each is None for each in said):
            raise UserError(
                f"labels.quality: {quality} of {dataset.root} must say which episodes succeed; it tells of none."
            )
        return said
    if "next.success" not in dataset.features:
        raise UserError(
            f"labels.source=recorded needs next.success in {dataset.root}; it has none. Try labels.quality=COLUMN, "
            "labels.source=success with labels.model=FOLDER, or labels.source=all."
        )
    return [bool(dataset.columns(i, ["next.success"])["next.success"].reshape(-1)[-1]) for i in range(len(dataset))]


def row_weights(
    config: DictConfig, labels: EpisodeLabels, planned: PolicyPlan, encoder: Any, rows: Windows
) -> np.ndarray:
    """(N,) how much each row is imitated; rows that cannot be learned from have 0.

    Raises:
        UserError: nothing is left.
    """
    kind = config.labels.weights
    weights = rows.usable.astype(np.float64)
    if kind == "solved":
        weights *= np.array([word == SOLVED for word in labels.words])[rows.episode]
    elif kind == "progress":
        found = progress(config, planned.sources, encoder, planned)
        weights *= np.concatenate(progress_weights(found, config.policy.horizon, kappa=config.labels.kappa))
    if not weights.sum() > 0:
        raise UserError(
            f"labels: nothing is left to imitate ({labels.told()}). Record more that succeeds, "
            "or look at labels.source and labels.weights."
        )
    return weights


def progress(config: DictConfig, sources: Sequence[DataSource], encoder: Any, planned: PolicyPlan) -> list[np.ndarray]:
    """Progress of each row of each episode of some datasets, in their order, by the process reward.

    Without a folder it is fitted to solved episodes of the plan's data, `TAUGHT` of each sentence.

    Raises:
        UserError: there is neither a folder nor an episode that is recorded as solved.
    """
    model, demos = config.labels.process, dict[str, list[Episode]]()
    read = {id(source): encoded(source, encoder, planned.cameras) for source in sources}
    if model is None:
        for each in (
            episode
            for source in planned.sources
            for episode in read.get(id(source)) or encoded(source, encoder, planned.cameras)
        ):
            if each.success and len(of_it := demos.setdefault(plain(each.instruction), [])) < TAUGHT:
                of_it.append(each)
        if not demos:
            raise UserError(
                "labels: a process reward is fitted to solved episodes; the data tell success of none (next.success). "
                "Give labels.process=FOLDER (embodied fit reward=process)."
            )
    shown = [each for of_it in demos.values() for each in of_it]
    found, heads, fits = list[np.ndarray](), dict[str, Any](), dict[Any, Any]()
    for each in (episode for source in sources for episode in read[id(source)]):
        if each.instruction not in heads:
            (heads[each.instruction],) = process_scorer(
                encoder=encoder, goal=each.instruction or None, model=model, demos=shown or None, fits=fits
            ).heads.values()
        with torch.inference_mode():
            found.append(heads[each.instruction].score(each.features)[0].double().cpu().numpy())
    return found
