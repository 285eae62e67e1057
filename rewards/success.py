"""Success: is the task done in this frame? A detector fitted to labelled episodes, or a vision-language model's yes.

RoboFuME learns by itself from such a detector's 1s, and what it wrongly calls success it learns. So both heads are
calibrated, report precision and recall, and may answer "unsure", which is never rewarded (`rewards.calibration`).

Shape letters: B batch, T time, D feature width, K members, N rows of all episodes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int8
from torch import Tensor

from rewards.calibration import Decision, Latch, Quality
from rewards.chat.asking import ChatModel, Message, chat_model, token_logprob
from rewards.chat.messages import filled
from rewards.chat.tokens import check_mass
from rewards.compose import as_scorer
from rewards.core import Encoder, Episode, Features, Head, Scorer
from rewards.members import check_episodes, fitted_views, of_goal
from rewards.storage import load_fitted, save_fitted
from rewards.success_fit import (
    KIND,
    assign_folds,
    calibrated,
    first_labels,
    fit_logistic,
    onset_labels,
    whitening,
    with_ones,
)

OUTPUTS = ("sparse", "probability")
ROUNDS = 3
ANSWERS = ("Yes", "No")
QUESTION = (
    "You watch a robot. Its task: {goal}. Look at the image. Is the task done, fully, at this moment? "
    "Answer with one word, Yes or No."
)


class SuccessClassifier:
    """K linear detectors on the features of every view, their mean calibrated; one number or answer a frame.

        logit_k(s) = b_k + Σ_v max(w_kv·s_v, floor_kv);   the answer and the reward by `Decision`

    A view the features lack counts as its floor, the least it ever said in fitting: it cannot raise a logit.

    Args:
        weights: camera -> (K, D).
        bias: (K,).
        floors: camera -> (K,).
        decision: temperature, thresholds, hysteresis.
        output: "sparse", 1 while success holds and 0 otherwise; or "probability", p itself, for use as a potential.
        quality: on episodes each member had not seen, from fitting; None where none was measured.

    Raises:
        ValueError: an unknown output.
    Source: the use is RoboFuME's (arXiv 2310.15145); its detector is a fine-tuned MiniGPT-4, ours is linear on the
        encoder's features. Departs: thresholds, abstention, hysteresis and the reports are ours.
    """

    name, advances, needs_cameras = KIND, True, True

    def __init__(
        self,
        weights: Mapping[str, Float[Tensor, "K D"]],
        bias: Float[Tensor, " K"],
        floors: Mapping[str, Float[Tensor, " K"]],
        decision: Decision,
        *,
        output: str = "sparse",
        quality: Quality | None = None,
    ) -> None:
        _check_output(output)
        self.weights, self.bias, self.floors = dict(weights), bias, dict(floors)
        self.decision, self.output, self.quality = decision, output, quality

    @property
    def cameras(self) -> tuple[str, ...]:
        """The views that it was fitted on."""
        return tuple(self.weights)

    @property
    def pointwise(self) -> bool:
        """Whether a step's potential needs no steps before it: held success does."""
        return self.output != "sparse" or self.decision.hold == 1

    def logits(self, features: Features) -> Float[Tensor, "K B T"]:
        """Log-odds of each member, before temperature."""
        views = fitted_views(features, list(self.weights), KIND)
        batch = features.main.shape[:2]
        total = self.bias.view(-1, 1, 1).expand(-1, *batch)
        for camera, weight in self.weights.items():
            floor = self.floors[camera].view(-1, 1, 1)
            view = views.get(camera)
            said = (
                floor
                if view is None
                else torch.einsum("btd,kd->kbt", view.float().to(weight.device), weight).maximum(floor)
            )
            total = total + said
        return total

    def probability(self, features: Features) -> Float[Tensor, "B T"]:
        """p of each frame, in [0, 1]."""
        return self.decision.probability(self.logits(features))

    def verdicts(self, features: Features) -> Int8[Tensor, "B T"]:
        """1 yes, 0 no, −1 unsure, of each frame by itself."""
        return self.decision.verdicts(self.logits(features))

    def score(self, features: Features) -> Float[Tensor, "B T"]:
        """The reward, 0 or 1; or p."""
        return self.advance(features)[0]

    def advance(self, features: Features, memory: Latch | None = None) -> tuple[Float[Tensor, "B T"], Latch | None]:
        """The rewards of the frames that follow (see `rewards.core.Head`)."""
        if self.output != "sparse":
            return self.probability(features).to(features.main), None
        rewards, memory = self.decision.rewards(self.verdicts(features), memory)
        return rewards.to(features.main), memory

    def save(self, folder: Path, encoder: Encoder) -> None:
        """Write a folder that `load` reads."""
        tensors = {f"weights/{camera}": value for camera, value in self.weights.items()}
        tensors |= {f"floors/{camera}": value for camera, value in self.floors.items()} | {"bias": self.bias}
        config = {"decision": asdict(self.decision), "output": self.output, "cameras": list(self.weights)}
        config["quality"] = None if self.quality is None else self.quality.as_dict()
        save_fitted(folder, kind=KIND, encoder=encoder, config=config, tensors=tensors)

    @classmethod
    def load(cls, folder: str | Path, encoder: Encoder) -> SuccessClassifier:
        """The detector that `save` wrote; raises as `load_fitted`."""
        config, tensors = load_fitted(folder, kind=KIND, encoder=encoder)
        cameras = config["cameras"]
        return cls(
            {camera: tensors[f"weights/{camera}"] for camera in cameras},
            tensors["bias"],
            {camera: tensors[f"floors/{camera}"] for camera in cameras},
            Decision(**config["decision"]),
            output=config["output"],
            quality=None if config["quality"] is None else Quality.from_dict(config["quality"]),
        )


class SuccessVLM:
    """A chat model's yes or no about each frame, as log-odds: log P(Yes) − log P(No).

    Args:
        model: who is asked; it must give log-probabilities.
        goal: the task, in words.
        decision: by default RoboFuME's rule, yes where P(Yes) > P(No); `calibrated` sets it on labelled episodes.
        every: ask about each `every`-th frame; between, the last answer stands.
        output: as in `SuccessClassifier`.
        cache: a folder for answers, by content.

    Raises:
        ValueError: no goal, every < 1, or an unknown output.
        VLMError: (score) the model refused or gave no probability of the two answers; never a reward.
    Source: arXiv 2310.15145: r = 1 if p("yes") > p("no"). Departs: the model is not fine-tuned here.
    """

    name, frames_read = KIND, "all"

    def __init__(
        self,
        model: ChatModel,
        goal: str,
        *,
        decision: Decision | None = None,
        every: int = 1,
        output: str = "sparse",
        cache: Path | None = None,
    ) -> None:
        _check_output(output)
        if not goal.strip() or every < 1:
            raise ValueError(f"SuccessVLM: goal must be a text and every ≥ 1; got {goal!r} and {every}.")
        self.model, self.goal, self.every, self.output, self.cache = model, goal, every, output, cache
        self.decision = decision or Decision()
        self.quality: Quality | None = None
        self._told: dict[bytes, float] = {}  # by content: an episode that grows is not asked about again

    def logits(self, features: Features) -> Float[Tensor, "1 B T"]:
        """Log-odds of yes, from the first camera whose frames are there."""
        if not features.frames:
            raise ValueError("SuccessVLM: features must hold frames; got none. It reads images (frames_read 'all').")
        frames = next(iter(features.frames.values()))
        if frames.shape[:2] != features.main.shape[:2]:
            raise ValueError(
                f"SuccessVLM: frames must be those of every row, {tuple(features.main.shape[:2])}; "
                f"got {tuple(frames.shape[:2])}."
            )
        steps = range(0, frames.shape[1], self.every)
        asked = torch.tensor([[self._ask(frames[b, t].cpu().numpy()) for t in steps] for b in range(len(frames))])
        return asked.repeat_interleave(self.every, 1)[None, :, : frames.shape[1]]

    def _ask(self, frame: np.ndarray) -> float:
        key = hashlib.sha256(frame.tobytes()).digest()
        if key not in self._told:
            message = Message("user", filled(QUESTION, goal=self.goal), [frame])
            yes, no = token_logprob(self.model, [message], list(ANSWERS), cache=self.cache)
            check_mass(self.model.name, math.exp(yes) + math.exp(no), ANSWERS)
            self._told[key] = yes - no
        return self._told[key]

    probability = SuccessClassifier.probability
    verdicts = SuccessClassifier.verdicts
    score, advance = SuccessClassifier.score, SuccessClassifier.advance

    @property
    def advances(self) -> bool:
        """Whether a frame can be asked about by itself: not where an earlier one's answer stands for it."""
        return self.every == 1

    def calibrate(self, episodes: Sequence[Episode], **wanted: Any) -> None:
        """Set temperature and thresholds on labelled episodes whose features hold frames; see `calibrated`.

        Raises:
            ValueError: an episode without a label, or as `calibrated`.
        """
        _check_labelled(episodes)
        logits = [self.logits(episode.features)[0, 0].double().numpy() for episode in episodes]
        rows = first_labels(episodes)
        self.decision, self.quality = calibrated(logits, rows, hold=self.decision.hold, leaning=True, **wanted)


def fit_success(
    episodes: Sequence[Episode],
    *,
    encoder: Encoder,
    goal: str | None = None,
    ridge: float = 0.1,
    output: str = "sparse",
    seed: int = 0,
    hold: int = 1,
    **wanted: Any,
) -> SuccessClassifier:
    """A detector from episodes of which a person said whether they ended well.

    Only episodes are labelled, so frames are labelled by turns: the last three rows of a success are positive, all
    rows of a failure and the first quarter of a success negative; then each success is given the onset that its
    held-out member finds most likely, argmax_τ Σ_{t≥τ} logit_t, and all is fitted again. A member is a logistic
    regression on all but one of up to five folds of episodes,

        min balanced mean BCE(b + a·t + w·(s−m)/σ) + ridge/2·(‖w‖² + a²/100),   t = s·g standardised, b free,

    so that with few labels it is a threshold on the goal text's similarity s·g, and with more it leaves it. Scores
    of held-out episodes set temperature and thresholds.

    Args:
        episodes: at least two that succeeded; failures should be among them, near misses above all.
        encoder: embeds the goal text; its features are what the episodes hold.
        goal: the prior, in words; None: no prior.
        ridge: > 0.
        output: as in `SuccessClassifier`.
        seed: which episodes share a fold.
        hold: as in `Decision`.
        wanted: `precision`, `base_rate`, `false_alarm` of `calibrated`.

    Raises:
        ValueError: fewer than two successes, an episode without a label, or a precision out of reach.
    """
    check_episodes(episodes, KIND)
    _check_labelled(episodes)
    if sum(bool(episode.success) for episode in episodes) < 2:
        raise ValueError(f"{KIND}: episodes must hold at least two successes. Record more.")
    cameras = list(episodes[0].features.views)
    rows = [np.concatenate([_rows(e, camera) for camera in cameras], 1) for e in episodes]
    everything = np.concatenate(rows)
    to_inputs = whitening(everything, goal, encoder, len(cameras))
    penalty = np.full(to_inputs.shape[1] - 1, ridge)
    if goal is not None:
        penalty[-1] /= 100
    folds = assign_folds([bool(episode.success) for episode in episodes], seed)

    labels = first_labels(episodes)
    members: list[np.ndarray] = []
    held_out: list[np.ndarray] = []
    for _ in range(ROUNDS):
        members = []
        for fold in range(folds.max() + 1):
            used = [i for i in range(len(rows)) if folds[i] != fold]
            y = np.concatenate([labels[i] for i in used])
            x = np.concatenate([rows[i] for i in used])[~np.isnan(y)]
            w, b = fit_logistic(with_ones(x) @ to_inputs[:, :-1], y[~np.isnan(y)], penalty)
            members.append(to_inputs @ np.append(w, b))
        held_out = [with_ones(row) @ members[fold] for row, fold in zip(rows, folds, strict=True)]
        labels = [
            onset_labels(z) if episode.success else y for z, y, episode in zip(held_out, labels, episodes, strict=True)
        ]
    weights, bias = np.stack(members)[:, :-1], np.stack(members)[:, -1]
    decision, found = calibrated(held_out, labels, hold=hold, **wanted)
    width = episodes[0].features.main.shape[-1]
    parts = {camera: weights[:, i * width : (i + 1) * width] for i, camera in enumerate(cameras)}
    floors = {
        camera: np.min(np.concatenate([_rows(e, camera) for e in episodes]) @ part.T, axis=0)
        for camera, part in parts.items()
    }
    return SuccessClassifier(
        {camera: _float(part) for camera, part in parts.items()},
        _float(bias),
        {camera: _float(floor) for camera, floor in floors.items()},
        decision,
        output=output,
        quality=found,
    )


def _check_labelled(episodes: Sequence[Episode]) -> None:
    if unsaid := sum(episode.success is None for episode in episodes):
        raise ValueError(
            f"{KIND}: success of every episode must be known; {unsaid} of {len(episodes)} are unlabelled. Where a "
            "column of another name tells it, name it, as success=next.reward."
        )


def _rows(episode: Episode, camera: str) -> np.ndarray:
    return episode.features.views[camera][0].double().cpu().numpy()


def _float(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))


def _check_output(output: str) -> None:
    if output not in OUTPUTS:
        raise ValueError(f"{KIND}: output must be one of {', '.join(OUTPUTS)}; got {output!r}.")


# What the config names --------------------------------------------------------------------------------------------


def success_scorer(
    *,
    encoder: Encoder,
    goal: str | None = None,
    model: str | None = None,
    demos: Sequence[Episode] = (),
    vlm: Mapping[str, Any] | ChatModel | None = None,
    thresholds: Mapping[str, Any] | None = None,
    output: str = "sparse",
    hold: int = 1,
    shaping: Mapping[str, Any] | None = None,
) -> Scorer:
    """A success head as a scorer: fitted before (`model`), fitted here (`demos`), or a chat model's yes (`vlm`).

    Args:
        encoder: embeds frames and texts.
        goal: the task in words; needed with `vlm`, a prior otherwise.
        model: folder of a `SuccessClassifier`.
        demos: labelled episodes, of which those of this goal are taken where some say so; with `vlm` they only
            calibrate it, and must hold frames.
        vlm: arguments of `rewards.chat.asking.chat_model`, and `every` and `cache` of `SuccessVLM`; or a chat model.
        thresholds: `precision`, `base_rate`, `false_alarm` of `calibrated`.
        output: "sparse" or "probability".
        hold: see `Decision`; of a fitted head it replaces that one's own.
        shaping: arguments of `PotentialShaping`.

    Raises:
        ValueError, TypeError: nothing to fit on, or as the heads say.
    """
    wanted = dict(thresholds or {})
    if model is None or vlm is not None:
        demos = of_goal(demos, goal)
    if vlm is not None:
        head: Head = _vlm_head(vlm, goal, demos, output, hold, wanted)
    elif model is not None:
        fitted = SuccessClassifier.load(model, encoder)
        _check_output(output)
        fitted.output, fitted.decision = output, replace(fitted.decision, hold=hold)
        head = fitted
    else:
        head = fit_success(demos, encoder=encoder, goal=goal, output=output, hold=hold, **wanted)
    return as_scorer(encoder, {KIND: head}, shaping)


def _vlm_head(
    vlm: Mapping[str, Any] | ChatModel,
    goal: str | None,
    demos: Sequence[Episode],
    output: str,
    hold: int,
    wanted: dict[str, Any],
) -> SuccessVLM:
    if goal is None:
        raise ValueError(f"{KIND}: goal must be given with vlm, which is asked whether it is done; got none.")
    own: dict[str, Any] = {}
    if isinstance(vlm, Mapping):
        own = {key: vlm[key] for key in ("every", "cache") if vlm.get(key) is not None}
        vlm = {key: value for key, value in vlm.items() if key not in ("every", "cache")}
    if "cache" in own:
        own["cache"] = Path(own["cache"])
    head = SuccessVLM(chat_model(vlm), goal, decision=Decision(hold=hold), output=output, **own)
    if any(episode.features.frames for episode in demos):
        head.calibrate(demos, **wanted)
    return head
