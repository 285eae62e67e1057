"""What can be said of a world: wordings of its facts, for training an encoder and for judging it.

A captions file is YAML: `macros` (name -> pattern), `facts` (fact -> {train, val, test} -> patterns) and `goals`
(fact -> the sentence we offer for it). In a pattern `[a|b|]` is a choice and `{name}` a macro. A fact named "scene"
holds in every frame of its world.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

SPLITS = ("train", "val", "test")
SCENE = "scene"

# Openings a person may put before a caption; they do not change what it says.
_PREFIXES = (
    "a photo of ", "a picture of ", "an image of ", "a render of ", "in this image ", "we see ", "now ",
)  # fmt: skip
_NOT = re.compile(r"\b(is now|is|stands|stays)\b(?! not)")


def _parts(pattern: str) -> list[list[str]]:
    """The choices of a pattern, in order: literal text is a choice of one."""
    return [
        piece[1:-1].split("|") if piece.startswith("[") else [piece]
        for piece in re.findall(r"\[[^]]*\]|[^[]+", pattern)
    ]


def _tidy(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


@dataclass(frozen=True)
class Wordings:
    """The wordings of one fact in one split."""

    patterns: tuple[tuple[tuple[str, ...], ...], ...]  # pattern -> part -> choices

    def all(self) -> list[str]:
        """Every sentence, each once, in file order."""
        sentences = (_tidy("".join(parts)) for pattern in self.patterns for parts in itertools.product(*pattern))
        return list(dict.fromkeys(sentences))

    def draw(self, rng: np.random.Generator) -> str:
        """One sentence: a pattern uniformly, then each choice uniformly."""
        pattern = self.patterns[rng.integers(len(self.patterns))]
        return _tidy("".join(part[rng.integers(len(part))] for part in pattern))


@dataclass(frozen=True)
class Captions:
    """All wordings of one world."""

    facts: dict[str, dict[str, Wordings]]  # fact -> split -> wordings
    goals: dict[str, str]  # fact -> the sentence we offer for it

    @classmethod
    def load(cls, path: Path) -> Captions:
        """Read a captions file.

        Raises:
            ValueError: a fact lacks a split, a macro is unknown, or a val or test sentence is also a train one.
        """
        content = yaml.safe_load(path.read_text())
        macros = content.get("macros", {})

        def wordings(patterns: Sequence[str]) -> Wordings:
            try:
                filled = [re.sub(r"\{(\w+)\}", lambda found: macros[found[1]], pattern) for pattern in patterns]
            except KeyError as missing:
                raise ValueError(f"{path}: macro must be one of {', '.join(macros)}; got {missing}.") from None
            return Wordings(tuple(tuple(tuple(choices) for choices in _parts(text)) for text in filled))

        facts = {}
        for fact, splits in content["facts"].items():
            missing = [split for split in SPLITS if not splits.get(split)]
            if missing:
                raise ValueError(f"{path}: fact {fact!r} must have train, val and test wordings; got no {missing[0]}.")
            facts[fact] = {split: wordings(splits[split]) for split in SPLITS}
        captions = cls(facts, content.get("goals", {}))
        captions._check_held_out(path)
        return captions

    def _check_held_out(self, path: Path) -> None:
        train = {text for splits in self.facts.values() for text in splits["train"].all()}
        for fact, splits in self.facts.items():
            leaked = [text for split in ("val", "test") for text in splits[split].all() if text in train]
            if leaked:
                raise ValueError(f"{path}: held-out wordings of {fact!r} must not be in train; got {leaked[0]!r}.")


def vary(text: str, rng: np.random.Generator) -> tuple[str, bool]:
    """A training variant of a caption: now and then a prefix, a negation, a lost article.

    Returns:
        The text, and whether it now says the opposite.
    """
    negated = False
    if rng.random() < 0.1 and _NOT.search(text):
        text, negated = _NOT.sub(r"\1 not", text, count=1), True
    if rng.random() < 0.15:
        text = _PREFIXES[rng.integers(len(_PREFIXES))] + text
    if rng.random() < 0.1:
        text = re.sub(r"\b(the|a|an) ", "", text)
    return text, negated
