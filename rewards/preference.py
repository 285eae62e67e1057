"""A reward from preferences: an ensemble fitted to which of two moments is better (RL-VLM-F).

Shape letters: K members, B batch, T time, N pairs, L rows of a segment, D feature width.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rewards.chat.asking import ChatModel, chat_model
from rewards.comparisons import (
    Comparisons,
    compare,
    draw_pairs,
    labels_by_text,
    labels_by_vlm,
    read_labels,
)
from rewards.compose import as_scorer
from rewards.core import Encoder, Episode, Features, Scorer
from rewards.members import Members, check_episodes, descend, fitted_views, flat
from rewards.storage import group_of, joined, load_fitted, save_fitted

KIND = "preference"


class PreferenceReward:
    """A Bradley–Terry reward, the mean of K members, scaled on a fixed set of rows.

        P(b ≻ a) = e^{Σ_L r̂(b)} / (e^{Σ_L r̂(a)} + e^{Σ_L r̂(b)}),   r̂_k = tanh(network_k)
        r = (mean_k r̂_k − m) / σ,   m and σ over the fixed set

    Preferences leave offset and scale open; the fixed set pins them, so that refits stay comparable.

    Args:
        comparisons: labelled pairs.
        reference: camera -> (N, D), the fixed set.
        members: K ≥ 1.
        epochs: at most; fitting stops once the members are right on 97 % of the pairs, in the mean.
        seed: same seed, same reward.

    Raises:
        ValueError: members or epochs < 1.
    Source: RL-VLM-F, arXiv 2402.03681 §3 and its code: 3 members, cross-entropy, stop at 97 % train accuracy. Departs:
        networks on an encoder's features instead of pixels; tanh everywhere (its code drops it for some tasks);
        members share the order of their batches; the scaling is ours (its rewards differ in scale by task).
    """

    name, pointwise = KIND, True

    def __init__(
        self,
        comparisons: Comparisons,
        reference: Mapping[str, Float[Tensor, "N D"]],
        *,
        members: int = 3,
        epochs: int = 200,
        seed: int = 0,
    ) -> None:
        if members < 1 or epochs < 1:
            raise ValueError(f"{KIND}: members and epochs must be ≥ 1; got {members} and {epochs}.")
        self.reference = {camera: rows.float().cpu() for camera, rows in reference.items()}
        self._how = {"members": members, "epochs": epochs, "seed": seed}
        self.accuracy = 0.0  # on the pairs it was fitted to, the members' mean
        self.refit(comparisons)

    def refit(self, comparisons: Comparisons) -> None:
        """Fit anew to these pairs, as labels come in; then score anew what is stored. Deterministic."""
        how = self._how
        self.members = Members(self.reference, count=how["members"], seed=how["seed"])

        def loss(rows: Tensor) -> Tensor:
            logits = self._ahead(comparisons, rows)
            target = comparisons.labels[rows].expand_as(logits)
            return torch.nn.functional.binary_cross_entropy_with_logits(logits, target)

        @torch.no_grad()
        def accurate() -> bool:
            right = (self._ahead(comparisons, torch.arange(len(comparisons))) > 0) == (comparisons.labels > 0.5)
            self.accuracy = float(right.float().mean())
            return self.accuracy >= 0.97

        passes = -(-len(comparisons) // 256)
        descend(
            self.members, loss, len(comparisons), steps=how["epochs"] * passes, learning_rate=1e-3, seed=how["seed"],
            stop=accurate,
        )  # fmt: skip
        self.members.set_floors(self.reference)
        with torch.no_grad():
            raw = self.members(self.reference).tanh().mean(0)
        self.offset, self.scale = float(raw.mean()), max(float(raw.std()), 1e-6)

    def _ahead(self, comparisons: Comparisons, rows: Tensor) -> Float[Tensor, "K N"]:
        """Σ_L r̂(second) − Σ_L r̂(first), the log-odds of the second being better."""
        both = []
        for side in (comparisons.first, comparisons.second):
            length = next(iter(side.values())).shape[1]
            said = self.members({camera: view[rows].flatten(0, 1) for camera, view in side.items()}).tanh()
            both.append(said.unflatten(1, (len(rows), length)).sum(2))
        return both[1] - both[0]

    @torch.no_grad()
    def score(self, features: Features) -> Float[Tensor, "B T"]:
        """r of each frame: mean 0 and standard deviation 1 over the fixed set; a missing view never raises it."""
        views = flat(fitted_views(features, list(self.reference), KIND), self.members)
        raw = self.members(views).tanh().mean(0)
        return ((raw - self.offset) / self.scale).unflatten(0, features.main.shape[:2]).to(features.main)

    def save(self, folder: Path, encoder: Encoder) -> None:
        """Write a folder that `load` reads."""
        config = self._how | {"offset": self.offset, "scale": self.scale, "accuracy": self.accuracy}
        tensors = joined({"members": self.members.state_dict(), "reference": self.reference})
        save_fitted(
            folder, kind=KIND, encoder=encoder, config=config | {"cameras": list(self.reference)}, tensors=tensors
        )

    @classmethod
    def load(cls, folder: str | Path, encoder: Encoder) -> PreferenceReward:
        """The reward that `save` wrote, with its fixed set, so that it can be refitted."""
        config, tensors = load_fitted(folder, kind=KIND, encoder=encoder)
        head = cls.__new__(cls)
        head._how = {key: config[key] for key in ("members", "epochs", "seed")}
        head.offset, head.scale, head.accuracy = config["offset"], config["scale"], config["accuracy"]
        head.reference = {camera: tensors[f"reference/{camera}"] for camera in config["cameras"]}
        head.members = Members.restore(config["cameras"], group_of(tensors, "members"))
        return head


def fixed_set(episodes: Sequence[Episode], rows: int = 512) -> dict[str, Float[Tensor, "N D"]]:
    """Camera -> up to `rows` rows, evenly spread over all episodes."""
    found = {}
    for camera in episodes[0].features.views:
        every = torch.cat([episode.features.views[camera][0].float().cpu() for episode in episodes])
        picked = torch.linspace(0, len(every) - 1, min(rows, len(every))).round().long()
        found[camera] = every[picked]
    return found


def judged(
    episodes: Sequence[Episode],
    *,
    encoder: Encoder,
    goal: str | None,
    labels: str | None,
    vlm: Mapping[str, Any] | ChatModel | None,
    pairs: int,
    length: int,
    margin: float,
    seed: int,
) -> Comparisons:
    """Comparisons by whoever is there to judge: a person's file, else a chat model, else the encoder with the goal.

    Args:
        episodes: encoded.
        labels: path of a person's comparisons; None: there are none.
        vlm: a chat model or its arguments; None: the encoder compares.
        pairs: number of pairs.
        length: rows of a segment.
        margin: cosine by which the encoder must prefer one.
        seed: of the draws.

    Raises:
        ValueError: no file and no goal.
    """
    if labels is not None:
        return read_labels(labels, episodes, length=length)
    if goal is None:
        raise ValueError(f"{KIND}: goal must be given for a model to compare by, or labels, a file; got neither.")
    drawn = draw_pairs(episodes, pairs, length=length, seed=seed)
    if vlm is None:
        said = labels_by_text(episodes, drawn, goal, encoder, length=length, margin=margin)
    else:
        cache = vlm.get("cache") if isinstance(vlm, Mapping) else None
        model = chat_model({k: v for k, v in vlm.items() if k != "cache"} if isinstance(vlm, Mapping) else vlm)
        said = labels_by_vlm(episodes, drawn, goal, model, cache=None if cache is None else Path(cache))
    return compare(episodes, drawn, said, length=length)


def preference_scorer(
    *,
    encoder: Encoder,
    goal: str | None = None,
    model: str | None = None,
    demos: Sequence[Episode] = (),
    labels: str | None = None,
    vlm: Mapping[str, Any] | ChatModel | None = None,
    pairs: Mapping[str, Any] | None = None,
    ensemble: Mapping[str, Any] | None = None,
    shaping: Mapping[str, Any] | None = None,
    fits: MutableMapping[Any, PreferenceReward] | None = None,
) -> Scorer:
    """`PreferenceReward` as a scorer.

    Args:
        encoder: embeds frames and texts.
        goal: what "better" means, for models that compare.
        model: folder of a fitted reward, instead of demos.
        demos: the episodes compared; any mixture of good and bad.
        labels: a person's comparisons, JSON lines (`rewards.comparisons.read_labels`).
        vlm: a chat model that compares: arguments of `rewards.chat.asking.chat_model` and `cache`; demos must hold
            frames.
        pairs: `count`, `length`, `margin`, `seed` of the drawn pairs (500, 1, 0.02, 0).
        ensemble: `members`, `epochs`, `seed` of `PreferenceReward`.
        shaping: arguments of `PotentialShaping`.
        fits: of the same arguments but the goal: what was fitted for other goals, where a person's comparisons are
            fitted to, which no goal changes. None: nothing is shared.

    Raises:
        ValueError, TypeError, FileNotFoundError: nothing to fit on, or as the parts say.
    """
    if model is not None:
        head = PreferenceReward.load(model, encoder)
    elif fits and labels in fits:
        head = fits[labels]
    else:
        check_episodes(demos, KIND)
        how = {"count": 500, "length": 1, "margin": 0.02, "seed": 0} | dict(pairs or {})
        comparisons = judged(
            demos, encoder=encoder, goal=goal, labels=labels, vlm=vlm, pairs=how["count"], length=how["length"],
            margin=how["margin"], seed=how["seed"],
        )  # fmt: skip
        head = PreferenceReward(comparisons, fixed_set(demos), **dict(ensemble or {}))
        if labels is not None and fits is not None:
            fits[labels] = head
    return as_scorer(encoder, {KIND: head}, shaping)
