"""The things that a sentence names: the noun phrases of goals and instructions, by closed lists of English words;
and whether two texts are the same but for how they are written.

Not a parser: whatever is no article, no verb of the list, no adverb and none of the other words below is taken for part
of a name, so that names nobody thought of are kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterable


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


ARTICLES = _words("the a an this that these those its their his her your my our some each every both all")
COLOURS = "red|green|blue|yellow|orange|purple|violet|pink|brown|black|white|gr[ea]y|silver|golden|turquoise|cyan"
VERBS = _words(  # of goals, in their plain form
    """arrive ask balance become begin belong bend bring bury can carry catch cause clean clear clench close clutch
    collapse come contact could cut dangle deliver depress do drag draw drive drop empty end enter extend fall fill
    find finish flip float fly fold force get give go grab grasp grip hang have haul help hide hit hoist hold hover
    insert jut keep kneel land lay lead lean leave let lie lift live look lower make meet must move need open ought pick
    pile pinch place point poke pour press pull push put raise reach release remain rest retract return roll rotate see
    serve set shall should shove show shut sink sit slam slide spin squeeze stack stand start stay stick stir stop
    straighten stretch support swap sweep swing switch take tap throw tilt tip toss touch transfer try tuck tug
    turn twist unfold use wait want will wipe would yank"""
)
IRREGULAR = _words(
    """came did does done drawn drew driven drove fallen fell flew flown found gave given goes gone got gotten had has
    held hid hidden hung kept laid lain led left lying made met saw seen shown slid spun stood stuck sunk swung
    taken thrown threw took went"""
)
ALSO_NOUNS = _words("cover end pile pin stack stick switch tip")  # names after an article, verbs elsewhere
PREPOSITIONS = _words(
    """about above across after against along among around as at before behind below beneath beside besides between
    beyond by down during for from in inside into like near of off on onto out outside over per since than through
    till to toward towards under underneath until up upon via with within without"""
)
BE = _words("am are be been being is was were")  # what follows at once is a state
OTHERS = _words(  # pronouns, conjunctions, adverbs, states; and places and matters that are no things
    """. anybody anyone anything everybody everyone everything he him i it itself me nobody none nothing one ones she
    somebody someone something there them they us we what where which who whom whose you although and because but
    either if neither nor not or so then unless when whether while again ago ahead almost already also altogether
    always any anymore apart away back ever far forward forwards here instead just least less longer more most
    much never next no now often once only please quite rather right same somewhere soon still together too twice
    very way well yet able active alone cannot closed downward downwards fine flat free full further good half
    halfway high higher highest horizontal idle left-hand level low lower lowest nice other own ready right-hand safe
    straight sure tight tall true upright upside upward upwards vertical wide aim air beginning bottom centre
    center contact course degree degrees direction distance edge front gap goal grasp ground height image inside
    length line mid-air middle order photo picture place position push reach rear render rest result scene shape
    side sides state task time times top work cm m metre metres meter meters mm percent second seconds"""
)
PLACES = _words("back bottom front left left-hand lower middle rear right right-hand top upper")  # "the top drawer"
LY_NOUNS = _words("assembly belly butterfly fly jelly lily supply")  # what ends so and is no adverb
_AFTER = re.compile(  # "the cube that is red", "the cube in red"
    rf"\b([a-z]+) (?:(?:that|which) (?:is|looks) ({COLOURS})\b"
    rf"|in ({COLOURS})(?= (?:\.|and|has|in|into|is|on|onto|to) |$))"
)
_ASIDE = re.compile(
    r"\b(?:(?:in|at) the (?:end|beginning|start)(?! (?:effector|of))|all the way|as far as [a-z]+ (?:goes|can|gets))\b"
)


DENYING = _words(
    """cannot fail failed fails false hardly lack lacking lacks neither never no nobody none nor not nothing unable
    unopened unpressed untouched untrue without wrong yet"""
)


def denies(text: str) -> bool:
    """Whether a word of a text may deny what the rest says: no, not, never, nobody, without, doesn't and their like."""
    plain = text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    return any(word in DENYING or word.endswith("n't") for word in re.findall(r"[a-z']+", plain))


def noun_phrases(text: str) -> list[str]:
    """The things that a text names, each once, in its order, with "the": "the red cube", "the tray".

    What "of" joins is one name: "the handle of the drawer". What only describes the state of a thing is left out: "the
    open drawer" is "the drawer"; where it is stays: "the top drawer". A colour told afterwards comes first: "the cube
    that is red" is "the red cube". A name that an article follows at once ends in a verb that is not in the lists: "the
    gripper nudges the cup".
    """
    plain = re.sub(r"[^a-z0-9'\s-]", " . ", text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'"))
    plain = _ASIDE.sub(" . ", " ".join(plain.split()))
    words = _AFTER.sub(lambda m: f"{m[2] or m[3]} {m[1]}", plain).split()
    found: list[str] = []
    at, joined, state = 0, False, False  # joined: the last name was followed by "of"; state: what follows is one
    while at < len(words):
        article = words[at] in ARTICLES
        start = at + article
        while article and start < len(words) and not _names(words[start], article) and words[start] not in ARTICLES:
            start += 1
        stop = start
        while stop < len(words) and _names(words[stop], article or stop > start):
            stop += 1
        name = words[start:stop]
        if name and article and start > at + 1 and words[start - 1] in PLACES:
            name = [words[start - 1], *name]
        if stop < len(words) and words[stop] in ARTICLES and len(name) > article:
            name = name[:-1]
        while name and (name[-1].endswith("'s") or (len(name) > 1 and name[-1].endswith("ed") and len(name[-1]) > 4)):
            name = name[:-1]  # "in the robot's grasp", "an arm mounted on"
        named = bool(name) and (article or not state)
        if named:
            phrase = " ".join(["the", *name])
            found[-1:] = [f"{found[-1]} of {phrase}"] if joined else [*found[-1:], phrase]
        joined = named and words[stop : stop + 1] == ["of"]
        state = words[at] in BE or (state and not (article or name or words[at] in PREPOSITIONS))
        at = max(stop + joined, at + 1)
    return list(dict.fromkeys(found))


def _names(word: str, inside: bool) -> bool:
    """Whether a word may be part of a name; `inside`: after an article or another part of it."""
    if word in ARTICLES or word in PREPOSITIONS or word in OTHERS or word.isdigit() or word.endswith("n't"):
        return False
    if word.endswith("'s") and (word[:-2] in OTHERS or word[:-2] in ARTICLES):  # it's, that's
        return False
    if inside and word in ALSO_NOUNS:
        return True
    return not _is_verb(word) and (not word.endswith("ly") or word in LY_NOUNS)


def _is_verb(word: str) -> bool:
    """Whether a word is a form of one of the verbs: opens, opened, opening; placed, placing; put, putting; carried."""
    stems = {word, word.removesuffix("s"), word.removesuffix("es")}
    for ending in ("ed", "ing"):
        if word.endswith(ending):
            stem = word.removesuffix(ending)
            stems |= {stem, stem + "e", stem[:-1] if stem[-2:-1] == stem[-1:] else stem}
    if word.endswith(("ied", "ies")):
        stems.add(word[:-3] + "y")
    return word in BE or word in IRREGULAR or not VERBS.isdisjoint(stems)


def plain(text: str) -> str:
    """A task's text without case, space around and between words, and punctuation at its end: what tasks are told
    apart by. Another wording is another task.
    """
    return " ".join(text.casefold().split()).rstrip(" .!?\u2026")


def as_worded(text: str, known: Iterable[str]) -> str:
    """A text as those that are known have it, where one is the same (see `plain`); else as it is."""
    wanted = plain(text)
    return next((each for each in known if plain(each) == wanted), text)


def distinct(texts: Iterable[str]) -> list[str]:
    """Each task once (see `plain`), as it is worded first.

    Args:
        texts: of tasks, in any number of wordings.
    """
    first: dict[str, str] = {}
    for text in texts:
        first.setdefault(plain(text), text)
    return list(first.values())
