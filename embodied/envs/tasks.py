"""What each of our worlds asks for, in words and as a fact; it can be read without MuJoCo."""

from __future__ import annotations

from typing import NamedTuple


class WorldTask(NamedTuple):
    """One task of a scene.

    Attributes:
        instruction: what a person would say; `{target}` stands for the colour of a cube.
        fact: what is true once it is solved, or all the way where that is the task, as named in the scene's
            `captions.yaml`; `{target}` as above.
        steps: of an episode.
        target: the colour that a cube has where none is asked for.
    """

    instruction: str
    fact: str
    steps: int
    target: str = "red"

    def told(self, target: str | None = None) -> tuple[str, str]:
        """Instruction and fact, of a cube of that colour."""
        target = target or self.target
        return self.instruction.format(target=target), self.fact.format(target=target)


CARTPOLE = WorldTask("balance the pole upright", "pole_up", 100)
REACHER = {
    colour: WorldTask(f"touch the {colour} ball", f"tip_{colour}", 50) for colour in ("red", "green", "blue", "yellow")
}
HUMANOID = {
    "stand": WorldTask("stand upright", "standing", 100),
    "kneel": WorldTask("kneel down", "kneeling", 100),
    "arms": WorldTask("raise both arms", "arms_raised", 100),
    "sit": WorldTask("sit down on the floor", "sitting", 100),
    "lie": WorldTask("lie down flat", "lying", 100),
    "leg": WorldTask("stand on one leg", "one_leg_up", 100),
}
DESK = {
    "reach": WorldTask("touch the {target} cube", "touch_{target}", 50),
    "push": WorldTask("push the {target} cube onto the yellow mark", "{target}_on_mark", 80),
    "press": WorldTask("press the button", "button_pressed", 50),
    "drawer": WorldTask("open the drawer", "drawer_open", 50),
    "close": WorldTask("close the drawer", "drawer_closed", 50),
    "lift": WorldTask("lift the {target} cube", "{target}_lifted", 80),
    "place": WorldTask("put the {target} cube in the tray", "{target}_in_tray", 120),
    "stack": WorldTask("put the red cube on the {target} cube", "red_on_{target}", 150, "green"),
}

DRIVE = {"town": WorldTask("drive along the route through the town without an accident", "road_clear", 400)}

_SCENES = {"cartpole": {"": CARTPOLE}, "reacher": REACHER, "humanoid": HUMANOID, "desk": DESK, "drive": DRIVE}
WORLDS = {
    "-".join(filter(None, (scene, name))): task for scene, tasks in _SCENES.items() for name, task in tasks.items()
}
