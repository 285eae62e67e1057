"""Cards about a learned world: how true it is, what practice in it was, and which policy stands."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from embodied.finetuning.imagining import MODEL, TRUTH
from embodied.finetuning.judging import verdict
from embodied.reports.charts import Series, line_chart
from embodied.reports.page import card, read_progress

WHO = {"world": "learned world", "blind": "action-blind", "copy": "nothing changed", "real": "true moments"}


def world_cards(folder: Path) -> list[str]:
    """The cards of a stage's folder, each once its file is there."""
    made = []
    if (folder / MODEL / TRUTH).is_file():
        made.append(_truth(json.loads((folder / MODEL / TRUTH).read_text("utf-8"))))
    curves = read_progress(folder / "practice" / "progress.csv")
    lines = [Series(label, *curves[key]) for key, label in
             (("practice/reward", "reward"), ("practice/solved", "ended as solved"),
              ("practice/stopped", "stopped by disagreement"), ("practice/skipped", "groups skipped"))
             if key in curves]  # fmt: skip
    if lines:
        made.append(
            card("Practice in the learned world", "Imagined rollouts; nothing here is of the simulator.",
                 line_chart(lines, x_label="updates", percent=True))
        )  # fmt: skip
    if (folder / "kept.json").is_file():
        made.append(_kept(json.loads((folder / "kept.json").read_text("utf-8"))))
    return made


def _table(titles: Sequence[str], rows: Mapping[str, Sequence[float | None]]) -> str:
    head = "<tr><th></th>" + "".join(f'<th class="n">{title}</th>' for title in titles) + "</tr>"
    body = ""
    for name, values in rows.items():
        cells = "".join(f'<td class="n">{chr(0x2013) if v is None else format(v, ".2f")}</td>' for v in values)
        body += f"<tr><th>{WHO.get(name, name)}</th>{cells}</tr>"
    return f'<div class="scroll"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>'


def _truth(told: Mapping[str, Any]) -> str:
    """Every question, by who foretold."""
    error, happened, same, reflector = (told[key] for key in ("error", "happened", "same", "reflector"))
    rows = {}
    for who in WHO:
        first: list[float | None] = [None if who == "real" else each.get(who) for each in error.values()]
        if who == "copy":
            first = [1.0] * len(first)
        rows[who] = [
            *first, happened[who]["r_squared"], happened[who]["choice"], same["scene"].get(who),
            same["moment"].get(who), reflector[who],
        ]  # fmt: skip
    titles = [f"error, {steps} actions" for steps in error]
    titles += ["action read back, R²", "of two actions", "same scene", "same moment", "success, AUROC"]
    note = (
        f"{told['windows']} windows of {told['episodes']} episodes that it was not taught. Error: of maps, as a share "
        "of that of “nothing changed”. The action is read from two moments by a model that knows real pairs; chance of "
        f"two is 0.50. Same: the imagined moment is nearest to its own true one, among other scenes (chance "
        f"{same['scene_chance']:.2f}) and among earlier moments ({same['moment_chance']:.2f}). AUROC: success read in "
        "the imagined end against what was recorded."
    )
    return card("How true the learned world is", note, _table(titles, rows))


def _kept(found: Mapping[str, Any]) -> str:
    rows = {}
    for word in ("former", "practised"):
        each = found[word]
        rows[f"{word} policy"] = [each["success_rate"], each["ever_rate"]]
    counted = "at any step, as the simulator's done signal would" if found["simulator_done"] else "at the last step"
    note = (
        f"On {found['former']['episodes']} validation starts; success counts {counted}. {verdict(found['compared'])} "
        f"The {found['kept']} policy stands."
    )
    titles = ["counted success", "success at any step"]
    return card("Whether practice is kept", note, _table(titles, rows))
