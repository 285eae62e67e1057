"""The page of a fine-tuning: success and steps to it before and after on the same starts, and both on film."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import yaml

from embodied.finetuning import worlds
from embodied.finetuning.judging import told_steps, verdict
from embodied.finetuning.world_report import world_cards
from embodied.reports.charts import Series, interval_bar, line_chart
from embodied.reports.page import card, config_card, facts_table, read_progress, write_page

ORDER = ("baseline", "imitate", "rollouts", "corrections", "chunked_rl", "world")
CALLED = {
    "baseline": "imitation of everything",
    "imitate": "imitation by labels",
    "rollouts": "with own rollouts",
    "corrections": "with corrections",
    "chunked_rl": "chunked RL",
    "world": "after practice in a learned world",
}


def called(name: str) -> str:
    """A stage as a person calls it."""
    return CALLED.get(name, name)


def write_finetuning(folder: Path) -> Path:
    """Write `report.html` into a fine-tuning's folder, from the files that are there; each part once its file is."""
    config = yaml.safe_load((folder / "config.yaml").read_text("utf-8"))
    about = json.loads((folder / "run.json").read_text("utf-8"))
    judged = _json(folder / "evaluation.json")
    labels = _json(folder / "labels.json")
    names = [name for name in ORDER if (folder / name / "policy").is_dir()]
    env = ", ".join(worlds.names(config)) or "no world"
    data = [config["data"]] if isinstance(config["data"], str) else config["data"]
    tags = {"world": env, "data": ", ".join(data), "head": config["policy"]["head"], "seed": config["seed"]}
    sections = [
        _table(judged),
        _films(folder, names),
        _execute(judged),
        _ranking(_json(folder / "chunked_rl" / "ranking.json")),
        *world_cards(folder / "world"),
        _labels(labels, config),
        _curves(folder, names),
        facts_table({key: value for key, value in about.items() if key not in ("policy", "execute")}),
        config_card(config),
    ]
    return write_page(
        folder,
        heading=env,
        verb="finetune",
        tags="".join(f"<span><b>{escape(k)}</b>{escape(str(v))}</span>" for k, v in tags.items()),
        result=_result(judged),
        warnings="",
        sections=sections,
    )


def _json(file: Path) -> Any:
    return json.loads(file.read_text("utf-8")) if file.is_file() else None


def _result(judged: Mapping[str, Any] | None) -> str:
    if judged is None or judged["success_rate"] is None:
        return '<p class="note">not judged</p>'
    rate, low, high, count = (judged[key] for key in ("success_rate", "ci_low", "ci_high", "episodes"))
    return (
        f"<strong>{100 * rate:.0f}<small>%</small></strong>{interval_bar(rate, low, high)}"
        f'<p class="note">success in {round(rate * count)} of {count} episodes<br>'
        f"95 % interval {low:.0%} to {high:.0%}</p>"
    )


def _table(judged: Mapping[str, Any] | None) -> str:
    """Every policy on the same starts, and the paired test of the last two."""
    if judged is None:
        return ""
    rows = ""
    for name, each in judged["summaries"].items():
        if each["success_rate"] is None:
            continue
        for title, told in {called(name): each, **each.get("worlds", {})}.items():
            if told["success_rate"] is None:
                continue
            steps = "\N{EN DASH}" if told["steps_to_success"] is None else f"{told['steps_to_success']:.0f}"
            cells = (
                f"{told['success_rate']:.0%}", f"{told['ci_low']:.0%} to {told['ci_high']:.0%}",
                f"{told['ever_rate']:.0%}", steps, str(judged["execute"][name]["chosen"]), str(told["episodes"]),
            )  # fmt: skip
            indent = "" if told is each else "\N{EM SPACE}"
            rows += f"<tr><th>{indent}{escape(title)}</th>" + "".join(f'<td class="n">{c}</td>' for c in cells)
            rows += "</tr>"
    titles = ("success", "95 % (Wilson)", "solved at any step", "steps to success", "steps executed", "starts")
    head = "<tr><th></th>" + "".join(f'<th class="n">{title}</th>' for title in titles) + "</tr>"
    note = "Success at the last step; all on the same starts, which chose nothing."
    if any("worlds" in each for each in judged["summaries"].values()):
        note += " Each world was told its own sentence."
    if "compared" in judged:
        compared = judged["compared"]
        before, after = (called(str(compared[key])) for key in ("before", "after"))
        note += f" {after[0].upper()}{after[1:]} against {before}: {verdict(compared)}"
        if judged["policy"] != compared["after"]:
            note += f" The former policy is kept: {called(judged['policy'])}."
        if compared.get("steps_saved") is not None:
            note += " " + told_steps(compared)
    return card(
        "Before and after", note, f'<div class="scroll"><table><thead>{head}</thead><tbody>{rows}</tbody></table></div>'
    )


def _films(folder: Path, names: Sequence[str]) -> str:
    """Each start's films side by side."""
    rows = ""
    starts = sorted({path.name.partition("_")[0] for path in (folder / "videos").glob("[0-9]*_*_*.mp4")}, key=int)
    for start in starts:
        figures = ""
        for name in names:
            for path in sorted((folder / "videos").glob(f"{start}_{name}_*.mp4")):
                data = base64.b64encode(path.read_bytes()).decode()
                word = path.stem.rpartition("_")[2]
                figures += (
                    "<figure><video controls autoplay muted loop playsinline "
                    f'src="data:video/mp4;base64,{data}"></video>'
                    f"<figcaption>{escape(called(name))}: {escape(word)}</figcaption></figure>"
                )
        rows += f'<div class="videos">{figures}</div>'
    note = "The same starts side by side, with the task's own reward drawn in; it was never learned from."
    return card("Episodes", note, rows) if rows else ""


def _execute(judged: Mapping[str, Any] | None) -> str:
    """How much of a chunk to execute, as it was chosen."""
    if judged is None:
        return ""
    series = []
    for name, about in judged["execute"].items():
        points = sorted((int(key), value) for key, value in about["tried"].items())
        if len(points) > 1:
            series.append(Series(called(name), [float(x) for x, _ in points], [y for _, y in points]))
    if not series:
        return ""
    chart = line_chart(series, x_label="steps of a chunk executed", percent=True, marks=True)
    return card("Steps executed", "Success on validation starts, which are not those above.", chart)


def _ranking(found: Mapping[str, Any] | None) -> str:
    """How the critic ranks chunks at one moment."""
    if found is None:
        return ""
    note = (
        "Several chunks were executed at the same moment, then the policy went on; the critic said before what each is "
        f"worth. At {found['mixed']} of {found['moments']} moments some led to success and some did not."
    )
    if found["auroc"] is None:
        return card("The critic", note, "")
    rows = "".join(
        f'<tr><th>{title}</th><td class="n">{value}</td></tr>'
        for title, value in (
            ("AUROC within a moment, mean", f"{found['auroc']:.2f}"),
            ("success of the critic's choice", f"{found['best']:.0%}"),
            ("of the policy's own chunk", f"{found['own']:.0%}"),
            ("of any chunk", f"{found['random']:.0%}"),
        )
    )
    return card("The critic", note, f'<table class="facts"><tbody>{rows}</tbody></table>')


def _labels(labels: Mapping[str, Any] | None, config: Mapping[str, Any]) -> str:
    if labels is None:
        return ""
    words, said = labels["words"], labels["said_by"]
    rows = ""
    for who in dict.fromkeys(said):
        of = [word for word, by in zip(words, said, strict=True) if by == who]
        cells = "".join(f'<td class="n">{of.count(word)}</td>' for word in ("solved", "not", "abstained"))
        rows += f"<tr><th>{escape(who)}</th>{cells}</tr>"
    head = "<tr><th>said by</th>" + "".join(f'<th class="n">{w}</th>' for w in ("solved", "not", "unsure")) + "</tr>"
    note = f"What is said of the demonstrations, of which labels.weights={config['labels']['weights']} are imitated."
    if labels.get("quality"):
        note += " The success model judges from pixels; its quality is of episodes it was not fitted to."
    table = f"<table><thead>{head}</thead><tbody>{rows}</tbody></table>"
    quality = ""
    for goal, told in (labels.get("quality") or {}).items():
        quality += f"<tr><th>success model of</th><td>{escape(goal) or 'all'}</td></tr>" + "".join(
            f"<tr><th>{escape(str(key).replace('_', ' '))}</th><td>{escape(_shown(value))}</td></tr>"
            for key, value in told.items()
        )
    return card("Labels", note, table + (f'<table class="facts"><tbody>{quality}</tbody></table>' if quality else ""))


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " to ".join(map(_shown, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _curves(folder: Path, names: Sequence[str]) -> str:
    cards = []
    titles = {
        "train/error": "Error on what is imitated",
        "validation/error": "Error on what is held out",
        "train/critic": "Error of the critic",
    }
    for key, title in titles.items():
        lines = []
        for name in names:
            found = read_progress(folder / name / "progress.csv").get(key)
            if found:
                lines.append(Series(called(name), *found))
        if lines:
            cards.append(
                card(
                    title,
                    "In normalised units, or of values in [0, 1]; by update.",
                    line_chart(lines, x_label="updates"),
                )
            )
    return f'<div class="grid2">{"".join(cards)}</div>' if cards else ""
