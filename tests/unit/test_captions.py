"""Wordings: expansion, held-out sentences, variants, and descriptions of a state."""

import numpy as np
import pytest

from embodied.envs.captions import SPLITS, Captions, vary
from embodied.paths import asset

SCENES = ("desk", "reacher", "cartpole", "humanoid", "drive")
FACT = "{train: [a], val: [b], test: [c]}"


def write(path, facts, macros=""):
    path.write_text(f"macros: {{{macros}}}\nfacts:\n{facts}")
    return path


def test_patterns_expand_to_every_choice_once(tmp_path):
    file = write(
        tmp_path / "captions.yaml",
        '  lit: {train: ["[the|a] {lamp} [glows|]", "the lamp"], val: [x], test: ["y"]}\n',
        macros='lamp: "[lamp|light]"',
    )
    train = Captions.load(file).facts["lit"]["train"]
    assert train.all() == [
        "the lamp glows", "the lamp", "the light glows", "the light",
        "a lamp glows", "a lamp", "a light glows", "a light",
    ]  # fmt: skip
    rng = np.random.default_rng(0)
    assert {train.draw(rng) for _ in range(200)} == set(train.all())


def test_choices_nest_through_macros(tmp_path):
    file = write(
        tmp_path / "captions.yaml", '  lit: {train: ["[on|off {lamp}|] now"], val: [x], test: ["y"]}\n', 'lamp: "[a|b]"'
    )
    assert Captions.load(file).facts["lit"]["train"].all() == ["on now", "off a now", "off b now", "now"]


@pytest.mark.parametrize("pattern", ["[a", "a]", "a|b"])
def test_brackets_must_pair(tmp_path, pattern):
    file = write(tmp_path / "captions.yaml", f'  lit: {{train: ["{pattern}"], val: [x], test: ["y"]}}\n')
    with pytest.raises(ValueError, match="brackets in pairs"):
        Captions.load(file)


def test_a_held_out_sentence_must_not_be_trained_on(tmp_path):
    file = write(tmp_path / "captions.yaml", '  lit: {train: ["[it|that] glows"], val: [x], test: ["that glows"]}\n')
    with pytest.raises(ValueError, match="held-out wordings of 'lit' must not be in train; got 'that glows'"):
        Captions.load(file)


def test_every_fact_needs_all_splits(tmp_path):
    file = write(tmp_path / "captions.yaml", "  lit: {train: [a], val: [b]}\n")
    with pytest.raises(ValueError, match="fact 'lit' must have train, val and test wordings; got no test"):
        Captions.load(file)


def test_denials_are_wordings_of_facts_and_held_out_alike(tmp_path):
    file = write(tmp_path / "captions.yaml", f"  lit: {FACT}\ndenials:\n  lit: {{train: [d], val: [e], test: [f]}}\n")
    assert Captions.load(file).denials["lit"]["test"].all() == ["f"]
    for denials, told in (
        ("lti: {train: [d], val: [e], test: [f]}", "denials must be of facts; got 'lti'. .*lit"),
        ("lit: {train: [d], val: [e]}", "denial 'lit' must have train, val and test wordings; got no test"),
        ("lit: {train: [d], val: [e], test: [a]}", "held-out wordings of 'lit' must not be in train; got 'a'"),
    ):
        write(file, f"  lit: {FACT}\ndenials:\n  {denials}\n")
        with pytest.raises(ValueError, match=told):
            Captions.load(file)


def test_an_unknown_macro_names_the_known(tmp_path):
    file = write(tmp_path / "captions.yaml", '  lit: {train: ["{lmap} on"], val: [b], test: [c]}\n', 'lamp: "[lamp]"')
    with pytest.raises(ValueError, match="macro must be one of lamp; got 'lmap'"):
        Captions.load(file)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (f"lit: {FACT}", "must hold `facts`, and may hold `macros`, `goals` and `denials`; got lit"),
        ("", "must hold `facts`"),
        ("- a", "must hold `facts`.*got list"),
        ("facts: [lit]", "facts must be names"),
        (f"facts: {{yes: {FACT}}}", "facts must be names"),  # YAML reads yes as true
        ("facts: {lit: [it glows]}", "fact 'lit' must have train, val and test wordings; got"),
        (
            "facts: {lit: {train: it glows, val: [b], test: [c]}}",
            "train of 'lit' must be a list of texts; got 'it glows'",
        ),
        ("facts: {lit: {train: [on], val: [b], test: [c]}}", "train of 'lit' must be a list of texts; got .True."),
        (f"facts: {{lit: {FACT}}}\ngoals: {{lit: [it glows]}}", "'lit' must be a text; got .'it glows'."),
        (
            f"facts: {{lit: {FACT}}}\ngoals: {{lid: it glows}}",
            "goals must be of facts; got 'lid'. Choose from lit; did you mean lit",
        ),
        ("facts: {lit: [", "must be YAML: "),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path, text, told):
    file = tmp_path / "captions.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=told):
        Captions.load(file)


@pytest.mark.parametrize("scene", SCENES)
def test_our_captions_cover_every_fact_of_their_world(scene):
    import gymnasium

    import embodied.envs  # noqa: F401

    worlds = {"desk": "desk-drawer", "reacher": "reacher-red", "cartpole": "cartpole", "humanoid": "humanoid-stand"}
    worlds |= {"drive": "drive-town"}
    world = gymnasium.make(f"embodied/{worlds[scene]}-v0").unwrapped
    captions = Captions.load(asset(scene) / "captions.yaml")
    assert set(world.facts) <= set(captions.facts)
    for fact, sentence in captions.goals.items():
        assert sentence in captions.facts[fact]["train"].all(), fact
    sentences = [
        (text, fact) for fact in captions.facts for split in SPLITS for text in captions.facts[fact][split].all()
    ]
    said = {}
    for text, fact in sentences:  # one sentence never stands for two facts
        assert said.setdefault(text, fact) == fact, text


def test_variants_say_when_they_negate():
    rng = np.random.default_rng(0)
    variants = [vary("the drawer is now open", rng) for _ in range(400)]
    negated = [text for text, flag in variants if flag]
    assert 15 < len(negated) < 80
    negations = {"not", "isn't", "longer", "never"}
    assert {word for text in negated for word in negations & set(text.split())} == negations
    assert all(negations & set(text.split()) for text in negated)
    assert not any(negations & set(text.split()) for text, flag in variants if not flag)


def test_descriptions_are_true():
    captions = Captions.load(asset("desk") / "captions.yaml")
    degrees = dict.fromkeys(captions.facts, 0.4) | {"drawer_open": 1.0}
    rng = np.random.default_rng(0)
    allowed = set(captions.facts["drawer_open"]["train"].all()) | set(captions.facts["scene"]["train"].all())
    for _ in range(20):
        sentences = captions.describe(degrees, rng)
        assert len(sentences) == 2
        assert set(sentences) <= allowed
