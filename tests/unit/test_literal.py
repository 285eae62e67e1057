"""Text from outside is data: in configs, in prompts, in saved runs; and what a saved run may reach is asked for."""

from __future__ import annotations

import pwd
import random

import pytest
from omegaconf import OmegaConf

from embodied import trust
from embodied.errors import UserError
from embodied.literal import literal, literal_config, load_literal, resolved, saved_text
from embodied.serving import tokens
from rewards.chat.messages import Message, filled

HOSTILE = [
    "put the ${item} away",
    "${oc.env:HOME}",
    "\\${oc.env:HOME}",
    "\\\\${a}",
    "${",
    "$}{ ${a.b} {c} %s",
    "{task} {0} {{}}",
    "抽屉开着",
    "1e-3",
    "yes",
    "null",
    "it says\x85so",
    "a line\u2028another",
]


def test_one_name_is_trusted_without_brackets(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    wants = {"reward": {"url": "http://here:1"}}
    trust.check_trusted(tmp_path, wants, "http://here:1")
    with pytest.raises(UserError, match="http://here:1"):
        trust.check_trusted(tmp_path, wants, "http://there:1")


@pytest.mark.parametrize("text", HOSTILE)
def test_a_text_from_outside_stays_as_it_stands(text, tmp_path):
    config = literal_config({"a": text, "b": [{"c": text}], "other": 1})
    assert (config.a, config.b[0].c) == (text, text)
    (tmp_path / "config.yaml").write_text(saved_text(config), "utf-8")
    again = load_literal(tmp_path / "config.yaml")
    assert resolved(again) == {"a": text, "b": [{"c": text}], "other": 1}


def test_texts_of_any_signs_stay_as_they_are():
    rng = random.Random(0)
    signs = ["\\", "${", "}", "a", " ", "oc.env:HOME", "'", '"', "$", "{", ":", "\n", "抽"]
    for _ in range(500):
        text = "".join(rng.choice(signs) for _ in range(rng.randint(0, 9)))
        assert OmegaConf.create({"a": literal(text)}).a == text


def test_a_saved_config_holds_values_and_not_their_origin(tmp_path, monkeypatch):
    monkeypatch.setenv("WHO", "me")
    config = OmegaConf.create({"name": "${oc.env:WHO}", "rate": 1e-05, "steps": 5, "same": "${steps}"})
    file = tmp_path / "config.yaml"
    file.write_text(saved_text(config), "utf-8")
    monkeypatch.setenv("WHO", "somebody else")
    assert resolved(load_literal(file)) == {"name": "me", "rate": 1e-05, "steps": 5, "same": 5}
    file.write_text("rate: 1e-4\n")  # as a person writes it
    assert load_literal(file).rate == 1e-4


@pytest.mark.parametrize("text", ["- a\n", "a: [", "!!python/object/apply:os.getcwd []", "[" * 5000])
def test_what_is_no_saved_config_is_refused(text, tmp_path):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match="must be a saved config"):
        load_literal(tmp_path / "config.yaml")


def test_prompts_are_filled_in_one_pass():
    text = filled('{"task": "{task}", "n": {n}} {frames}', task="{frames} ${x} {n} <image>", n="7", frames=2)
    assert text == '{"task": "{frames} ${x} {n} [image]", "n": 7} <image><image>'
    with pytest.raises(ValueError, match="got 2"):
        Message("user", text, [])  # the marks are those of the frames alone


# What a saved run may reach ---------------------------------------------------------------------------------------

REMOTE = {"reward": {"url": "http://elsewhere:1", "token_env": "KEY", "goal": "see http://x"}, "env": {"id": "a-v0"}}


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    """What this person used before: nothing yet."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (REMOTE, "'trust=[http://elsewhere:1,KEY]'"),
        ({"encoder": {"url": "http://a"}}, "encoder.url=http://a"),
        ({"reward": {"parts": {"a": {"token_file": "/etc/passwd"}}}}, "reward.parts.a.token_file=/etc/passwd"),
        ({"reward": {"vlm": {"api_key_env": "SECRET"}}}, "reward.vlm.api_key_env=SECRET"),
        ({"reward": {"odd": ["ftp://a"]}}, "reward.odd.0=ftp://a"),
        ({"env": {"id": "mine:World-v0"}}, "env.id=mine:World-v0"),
        ({"scenes": {"mine": {"worlds": ["cartpole", "mine:World-v0"]}}}, "scenes.mine.worlds.1=mine:World-v0"),
        ({"scenes": {"mine": {"facts": "mine:Facts"}}}, "scenes.mine.facts=mine:Facts"),
        ({"reward": {"parts": {"goal": {"url": "http://a"}}}}, "reward.parts.goal.url=http://a"),
        ({"reward": {"parts": {"prompt": {"token_env": "KEY"}}}}, "reward.parts.prompt.token_env=KEY"),
        ({"scenes": {"goal": {"facts": "mine:Facts"}}}, "scenes.goal.facts=mine:Facts"),
        (REMOTE | {"trust": ["http://elsewhere:1", "KEY"]}, "reward.token_env=KEY"),  # its own word counts for nothing
    ],
)
def test_what_leads_out_of_a_saved_run_is_asked_for(values, wanted, tmp_path):
    with pytest.raises(UserError) as caught:
        trust.check_trusted(tmp_path, values, None)
    assert wanted in str(caught.value)
    assert "trust=[" in str(caught.value)


def test_what_a_person_names_is_allowed_then_and_later_together(tmp_path):
    trust.check_trusted(tmp_path, {"env": {"id": "embodied/desk-drawer-v0"}, "reward": {"goal": "http://a"}}, None)
    texts = {"goal": ["http://a", "b"], "goals": {"up": "it stands, see http://a"}, "outcome": {"goal": "http://a"}}
    trust.check_trusted(tmp_path, {"reward": texts}, None)
    trust.check_trusted(tmp_path, REMOTE, ["http://elsewhere:1", "KEY"])
    with pytest.raises(UserError, match=r"reward\.token_env=KEY"):
        trust.check_trusted(tmp_path, REMOTE, ["http://elsewhere:1"])
    trust.remember(REMOTE)
    trust.check_trusted(tmp_path, REMOTE, None)
    with pytest.raises(UserError, match="OTHER"):  # that address, with another key of this person's
        trust.check_trusted(tmp_path, {"reward": REMOTE["reward"] | {"token_env": "OTHER"}}, None)
    trust.kept_file().write_text("{{")
    with pytest.raises(UserError, match="KEY"):
        trust.check_trusted(tmp_path, REMOTE, None)


@pytest.fixture
def homeless(monkeypatch):
    """A user without a name and a home, as a container of a cluster runs as."""
    for name in ("HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)

    def nobody(number: int) -> None:
        raise KeyError(number)

    monkeypatch.setattr(pwd, "getpwuid", nobody)


def test_who_has_no_home_is_asked_each_time(tmp_path, homeless):
    trust.remember(REMOTE)
    with pytest.raises(UserError, match="KEY"):
        trust.check_trusted(tmp_path, REMOTE, None)


def test_who_has_no_home_keeps_tokens_where_they_say(tmp_path, homeless, monkeypatch):
    assert tokens.found(tokens.SERVE, 1) is None
    with pytest.raises(UserError, match="XDG_RUNTIME_DIR"), tokens.made(tokens.SERVE, 1):
        pass
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with tokens.made(tokens.SERVE, 1) as (token, _):
        assert tokens.found(tokens.SERVE, 1) == token
