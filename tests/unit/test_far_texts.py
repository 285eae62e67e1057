"""Goals that name what the embedded encoder was never taught are told apart from those in its words."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from embodied.building import far_texts
from embodied.building.far_texts import known_words, unknown_words
from embodied.config import compose
from embodied.envs import WORLDS
from embodied.envs.captions import Captions, words
from embodied.paths import asset

SCENES = ("desk", "reacher", "cartpole", "humanoid", "drive")
FAR = """a cat on a sofa|a dog standing up|purple ball|red cup|the kettle is boiling|a bowl of soup|the door is open
the banana is in the bowl|the book is on the shelf|fold the towel|a car on a road|the lamp is switched on
pour the water into the glass|the plane has landed|open the refrigerator|a bird in a tree|the screw is tightened
close the window|stir the coffee with a spoon|a horse jumping over a fence|put the apple on the plate
the microwave is closed|wipe the whiteboard|the phone is charging|a child riding a bicycle|the peg is in the hole
hang the mug on the hook|the faucet is turned on|a tower of pillows|sweep the crumbs into the dustpan
the laptop is shut|a boat on a lake|zip the jacket|the candle is lit|a slice of pizza|the rope is tied in a knot
insert the usb stick|put the sock in the basket|an elephant|press the doorbell|turn the valve|a white rabbit
open the curtain|a train in a station|unlock the safe|the bottle stands upright|water the plant"""
NEAR = {  # paraphrases that set nothing
    "desk": """the drawer has been slid out to its limit|the gripper squeezes the red block
someone pushed the button down|the tray holds the red cube|the blue block hangs in the air
the drawer is not open any more|open that drawer for me
please press the button|the red box lies in the bin|the arm lifted the green cube off the table|shut the drawer
the green block sits under the red one|get the red cube onto the yellow square|the robot's fingers are closed
keep the button pressed|nobody is pressing the button|there is no red cube in the tray|the handle has been pulled""",
    "reacher": """the fingertip is at the red ball|move the tip onto the blue ball|the arm points at the green ball
the tip has reached the yellow ball|touch the red ball with the tip of the arm""",
    "cartpole": """the pole is balanced|keep the pole upright|the pole has fallen to the side
the cart is at the left""",
    "humanoid": """stand up tall|the robot is on its knees|the humanoid has got up|lie down on the floor|raise both arms
the humanoid is sitting on the ground""",
    "drive": """the red car crashed into another car|the street is free|somebody crosses the road on the stripes
the car drives over the grass|the car is in the wrong lane|two cars touch each other at the junction""",
}


def listed(texts: str) -> list[str]:
    return texts.replace("\n", "|").split("|")


def captions(scene: str) -> Captions:
    return Captions.load(asset(scene) / "captions.yaml")


@pytest.mark.parametrize("scene", SCENES)
def test_texts_of_other_things_are_flagged(scene):
    flagged = [text for text in listed(FAR) if unknown_words(text, known_words((scene,)))]
    assert len(flagged) >= 0.9 * len(listed(FAR)), set(listed(FAR)) - set(flagged)


def test_own_goals_and_their_paraphrases_are_not():
    wrong, total = [], 0
    for scene in SCENES:
        facts = captions(scene).facts.values()
        held_out = [text for splits in facts for split in ("val", "test") for text in splits[split].all()]
        texts = [*captions(scene).goals.values(), *held_out, *listed(NEAR[scene])]
        total += len(texts)
        wrong += [text for text in texts if unknown_words(text, known_words((scene,)))]
    assert total > 200
    assert len(wrong) <= 0.05 * total, wrong


def test_what_is_named_is_told():
    known = known_words(("desk",))
    assert unknown_words("a cat on a sofa", known) == ["cat", "sofa"]
    assert unknown_words("the turquoise cubes are in the tray", known) == ["turquoise"]
    assert unknown_words("the little red cube is lifted", known) == []
    assert unknown_words("the lid of the jar", known) == ["lid", "jar"]


def test_words_are_those_of_every_sentence():
    for splits in captions("reacher").facts.values():
        assert splits["train"].words() == {word for text in splits["train"].all() for word in words(text)}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["reward=clip", "goal=a cat on a sofa"], "never taught, 'cat', 'sofa': no caption of embodied/desk-drawer-v0"),
        (["reward=clip", "goal=the drawer is open"], ""),
        (
            [
                "reward=[clip,softmax]",
                "goal=the drawer is open",
                "reward.softmax.goal=a red kettle",
                "reward.softmax.negative=[a cup]",
            ],
            "'kettle'",
        ),
        (["reward=true"], ""),
        (["reward=clip", "goal=a cat", "encoder=open_clip", "encoder.model=ViT-B-32"], ""),
        (["reward=gvl_chat", "goal=a cat", "reward.vlm={url: http://x, model: m}"], ""),
    ],
)
def test_preview_and_train_warn(settings, told, capsys):
    far_texts.warn(compose("preview", ["env=desk-drawer", *settings]))
    err = capsys.readouterr().err
    assert (told in err) if told else not err


def test_a_scene_that_the_encoder_was_never_taught_is_told(capsys):
    assert {scene for known in far_texts.TAUGHT.values() for scene in known} == set(SCENES)
    goal = "goal=the road is clear with no car accidents"
    for world, encoder, knowing in (("drive-town", "embedded", "town"), ("desk-press", "town", "embedded")):
        far_texts.warn(compose("train", [f"env={world}", "reward=clip", goal, f"encoder={encoder}"]))
        err = capsys.readouterr().err
        assert f"never taught pictures of embodied/{world}-v0" in err
        assert f"Take encoder={knowing}" in err
    for settings in (["reward=clip", goal], ["reward=clip", goal, "encoder=open_clip"], ["reward=true"]):
        far_texts.warn(compose("train", ["env=drive-town", *settings]))
    assert not capsys.readouterr().err


def test_every_task_has_a_sentence_that_we_offer():
    assert [name for name in WORLDS if not far_texts.offered(name)] == []


def test_a_world_of_another_package_may_be_of_any(capsys):
    config = compose("preview", ["env=gym", "env.id=CartPole-v1", "reward=clip", "goal=the pole is upright"])
    far_texts.warn(config)
    assert not capsys.readouterr().err
    far_texts.warn(OmegaConf.merge(config, {"reward": {"goal": "the kettle is on"}}))
    assert "no caption of any world has it" in capsys.readouterr().err
