"""What can be said of a world: wordings of its facts, for training an encoder and for judging it.

A captions file is YAML: `macros` (name -> pattern), `facts` (fact -> {train, val, test} -> patterns), `goals` (fact ->
the sentence we offer for it) and `denials` (as `facts`: sentences that say that a fact does not hold). In a pattern
`[a|b|]` is a choice and `{name}` a macro. A fact named "scene" holds in every frame of its world.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from embodied.errors import nearest

SPLITS = ("train", "val", "test")
SCENE = "scene"

# Openings a person may put before a caption; they do not change what it says.
OPENINGS = (
    "a photo of ", "a picture of ", "an image of ", "a render of ", "in this image ", "we see ", "now ",
)  # fmt: skip
_LETTERS = list("eeeaaiioouurrttnnssllccddmmppgghhbbyykwvf")
NEGATIONS = ("is not", "isn't", "is no longer", "is never")  # of "is" and "is now"
_NOT = re.compile(r"\b(is now|is|stands|stays)\b(?! not)")


# A parsed pattern: its parts in order, each literal text or the alternatives to choose from.
Pattern = tuple[Any, ...]


def _parse(text: str) -> Pattern:
    """A pattern of literal text and, nested at will, `[…|…]` choices."""
    words = iter([*re.split(r"([][|])", text), "]"])
    alternatives = _alternatives(words)
    if len(alternatives) != 1 or next(words, None) is not None:
        raise ValueError(f"captions: a pattern must have its brackets in pairs and | inside them; got {text!r}.")
    return alternatives[0]


def _alternatives(words: Iterator[str]) -> tuple[Pattern, ...]:
    """The alternatives up to the `]` that closes them."""
    alternatives: list[list[str | tuple[Pattern, ...]]] = [[]]
    for word in words:
        if word == "]":
            break
        if word == "|":
            alternatives.append([])
        else:
            alternatives[-1].append(_alternatives(words) if word == "[" else word)
    else:
        raise ValueError("captions: a pattern must have its brackets in pairs; one is left open.")
    return tuple(tuple(parts) for parts in alternatives)


def _expand(pattern: Pattern) -> list[str]:
    choices = ([part] if isinstance(part, str) else [t for each in part for t in _expand(each)] for part in pattern)
    return ["".join(parts) for parts in itertools.product(*choices)]


def _texts(pattern: Pattern) -> Iterator[str]:
    """Every literal part, however nested."""
    for part in pattern:
        if isinstance(part, str):
            yield part
        else:
            for each in part:
                yield from _texts(each)


def words(text: str) -> list[str]:
    """A text's words, without case; "the robot's hand" is the, robot, hand."""
    return re.findall(r"[a-z]+", text.lower().replace("'s", ""))


def _draw(pattern: Pattern, rng: np.random.Generator) -> str:
    return "".join(part if isinstance(part, str) else _draw(part[rng.integers(len(part))], rng) for part in pattern)


def _tidy(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


@dataclass(frozen=True)
class Wordings:
    """The wordings of one fact in one split.

    Args:
        patterns: sentences with choices in them.
    """

    patterns: tuple[Pattern, ...]

    def all(self) -> list[str]:
        """Every sentence, each once, in file order."""
        return list(dict.fromkeys(_tidy(text) for pattern in self.patterns for text in _expand(pattern)))

    def words(self) -> set[str]:
        """Every word of these sentences, without case and apostrophes: of the patterns' parts, not of their product."""
        return {word for pattern in self.patterns for text in _texts(pattern) for word in words(text)}

    def draw(self, rng: np.random.Generator) -> str:
        """One sentence: a pattern uniformly, then each choice uniformly."""
        return _tidy(_draw(self.patterns[rng.integers(len(self.patterns))], rng))


@dataclass(frozen=True)
class Captions:
    """All wordings of one world.

    Args:
        facts: fact -> split -> wordings.
        goals: fact -> the sentence we offer for it.
        denials: fact -> split -> wordings that say that it does not hold, of some facts or none.
    """

    facts: dict[str, dict[str, Wordings]]
    goals: dict[str, str]
    denials: dict[str, dict[str, Wordings]] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path, macros: Mapping[str, str] | None = None) -> Captions:
        """Read a captions file; `macros` are known besides its own.

        Raises:
            ValueError: not of a captions file's form, a fact lacks a split, a macro is unknown, or a val or test
                sentence is also a train one.
        """
        content = _read(path)
        known = {**(macros or {}), **content["macros"]}

        def wordings(patterns: Sequence[str]) -> Wordings:
            try:
                filled = [re.sub(r"\{(\w+)\}", lambda found: known[found[1]], pattern) for pattern in patterns]
            except KeyError as missing:
                raise ValueError(f"{path}: macro must be one of {', '.join(known)}; got {missing}.") from None
            return Wordings(tuple(_parse(text) for text in filled))

        told: dict[str, dict[str, dict[str, Wordings]]] = {"facts": {}, "denials": {}}
        for part, found in told.items():
            for fact, splits in content[part].items():
                missing = [split for split in SPLITS if not splits.get(split)]
                if missing:
                    raise ValueError(
                        f"{path}: {part[:-1]} {fact!r} must have train, val and test wordings; got no {missing[0]}."
                    )
                found[fact] = {split: wordings(splits[split]) for split in SPLITS}
        captions = cls(told["facts"], content["goals"], told["denials"])
        captions._check_held_out(path)
        return captions

    def describe(self, degrees: Mapping[str, float], rng: np.random.Generator) -> list[str]:
        """A state in words: one training sentence for the scene and for every fact that holds in it.

        Args:
            degrees: fact -> how far it holds; it holds at 1.
        """
        true = [SCENE, *(fact for fact in self.facts if degrees.get(fact) == 1 and fact != SCENE)]
        return [self.facts[fact]["train"].draw(rng) for fact in true]

    def _check_held_out(self, path: Path) -> None:
        told = [*self.facts.items(), *self.denials.items()]
        train = {text for _, splits in told for text in splits["train"].all()}
        for fact, splits in told:
            leaked = [text for split in ("val", "test") for text in splits[split].all() if text in train]
            if leaked:
                raise ValueError(f"{path}: held-out wordings of {fact!r} must not be in train; got {leaked[0]!r}.")


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """A captions file's content, each of its parts a mapping.

    Raises:
        ValueError: it is not of that form.
    """
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: must be YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(content, dict) or "facts" not in content:
        got = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
        may = "`macros`, `goals` and `denials`"
        raise ValueError(f"{path}: must hold `facts`, and may hold {may}; got {got or 'nothing'}.")
    parts = {name: content.get(name) or {} for name in ("facts", "macros", "goals", "denials")}
    for name, part in parts.items():
        if not isinstance(part, dict) or not all(isinstance(key, str) for key in part):
            raise ValueError(f"{path}: {name} must be names, each with what belongs to it; got {part!r}.")
    for name, text in (parts["macros"] | parts["goals"]).items():
        if not isinstance(text, str):
            raise ValueError(f"{path}: {name!r} must be a text; got {text!r}. Put it in quotes.")
    for fact, splits in [*parts["facts"].items(), *parts["denials"].items()]:
        if not isinstance(splits, dict):
            raise ValueError(f"{path}: fact {fact!r} must have train, val and test wordings; got {splits!r}.")
        for split in SPLITS:
            patterns = splits.get(split) or []
            if not isinstance(patterns, list) or not all(isinstance(text, str) for text in patterns):
                raise ValueError(f"{path}: {split} of {fact!r} must be a list of texts; got {patterns!r}.")
    if unknown := [fact for fact in parts["denials"] if fact not in parts["facts"]]:
        raise ValueError(
            f"{path}: denials must be of facts; got {unknown[0]!r}. {nearest(unknown[0], list(parts['facts']))}"
        )
    for goal in parts["goals"]:  # a file may serve several worlds, and offer goals of facts that one lacks
        if goal not in parts["facts"] and get_close_matches(goal, parts["facts"], cutoff=0.6):
            raise ValueError(f"{path}: goals must be of facts; got {goal!r}. {nearest(goal, list(parts['facts']))}")
    return parts


def vary(text: str, rng: np.random.Generator, *, negate: bool = True) -> tuple[str, bool]:
    """A training variant of a caption: now and then a prefix, a negation, a lost article, a made-up word.

    Made-up words stand for all that training does not say; an encoder learns to read past them.

    Args:
        text: a caption.
        rng: of the draws.
        negate: whether it may come out as the opposite.

    Returns:
        The text, and whether it now says the opposite.
    """
    negated = False
    if negate and rng.random() < 0.1 and (verb := _NOT.search(text)):
        said = NEGATIONS[int(rng.integers(len(NEGATIONS)))] if verb[1].startswith("is") else f"{verb[1]} not"
        text, negated = text[: verb.start()] + said + text[verb.end() :], True
    if rng.random() < 0.15:
        text = OPENINGS[rng.integers(len(OPENINGS))] + text
    if rng.random() < 0.1:
        text = re.sub(r"\b(the|a|an) ", "", text)
    if rng.random() < 0.2:
        words = text.split(" ")
        for _ in range(rng.integers(1, 4)):
            made_up = "".join(rng.choice(_LETTERS, rng.integers(2, 8)))
            words.insert(rng.integers(len(words) + 1), made_up)
        text = " ".join(words)
    return text, negated
