"""Does anything past a limit reach a robot, or a stop not reach it, when all that speaks to its environment lies?

The hostile robot of the tests, an operator and a hand on the controls misbehave at random: they raise, give NaN, wrong
shapes, times ahead of the clock or gone back, pushed arms, false words of what was sent, late answers, calls that hang.
Counted are inputs that were wrong and what came of them; time passes by the robot's own clock, so nothing here depends
on how busy the machine is.

    python -m benchmarks.robot_attack
    python -m benchmarks.robot_attack seeds=100 record=false
"""

from __future__ import annotations

from dataclasses import asdict

from benchmarks.common import read_options, record
from embodied.robots import control, watchdog
from rewards.progress import tqdm
from tests.hostile_arm import Tally, attack

OPTIONS = {"seeds": 500, "record": True}


def main() -> None:
    """Attack and record."""
    options = read_options(OPTIONS)
    control.READY_S, control.DISCONNECT_S, watchdog.TELL_S = 0.1, 0.3, 0.3  # what hangs is waited for shortly
    total = Tally()
    for seed in tqdm(range(options["seeds"])):
        total += attack(seed)
    row = {
        "claim": "a hostile robot: commands past a limit, moves after a failure, closes that hang, silent ends",
        "value": total.violations,
        "unit": f"of {total.inputs} wrong inputs and {total.commands} commands",
        "bar": "= 0",
        "met": total.violations == 0,
        "n": options["seeds"],
        "seeds": options["seeds"],
        "counts": asdict(total),
    }
    print(f"{row['claim']}: {row['value']} {row['unit']} (bar {row['bar']}, met {row['met']})")
    if options["record"]:
        print(record("robot_attack", [row]))


if __name__ == "__main__":
    main()
