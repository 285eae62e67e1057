"""What a person reads of a judgement: one self-contained page, and a table in the terminal."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from embodied.datasets.kinds import RIGHT, WRONG
from embodied.judging import published
from embodied.judging.cells import UNDEFINED, cell, lines, row_class, shown
from embodied.judging.charts import Curve, dot_rows, film, legend, panel, strip
from embodied.judging.figures import CANARIES, GROUPS, Canary, Case, Division, Figure
from embodied.judging.judgement import Judged
from embodied.judging.outcome import SHOWN
from embodied.judging.verdicts import RULES, Verdict, broken_canaries
from embodied.reports.charts import number
from embodied.reports.page import card, config_card, facts_table, write_page

Frames = Callable[[int], np.ndarray]  # episode -> (T, H, W, 3) uint8
COLOURS = {"success": 3, "near miss": 2, "failure": 4, "random": 6}
MARKS = {"trust": "trust", "care": "with care", "avoid": "do not use", "unknown": "unknown"}
RARE = 0.005  # share of all predictions below which a bin is not drawn
GRID = np.linspace(0, 1, 25)
COLUMNS: dict[str, tuple[str, str, int, str]] = {  # figure -> title, short title, which way is better, what it is
    "voc": ("order", "order", 1, "Spearman's correlation with time along successes (VOC); 1 is best"),
    "voc_reversed": ("order, reversed", "reversed", 1, "the same when the film runs backwards; -1 gives away a clock"),
    "margin": (
        "outcome margin", "margin", 1,
        "least credit of episodes that reach the goal less the greatest of those that miss it: 1 is best, 0 pays poses",
    ),
    "tau_a": ("ranking τ_a", "tau_a", 1, "Kendall's τ_a of ends with quality (success, near miss, rest), all pairs"),
    "somers_d": ("Somers' D", "D", 1, "the same over pairs of different quality: 1 is a perfect ranking"),
    "auroc": ("AUROC", "AUROC", 1, "successes against all other episodes, by the potential at the end"),
    "ap": ("average precision", "AP", 1, "of the same; a constant has the share of successes"),
    "precision": ("precision", "precision", 1, "of what reaches the threshold at its end, the share that is success"),
    "recall": ("recall", "recall", 1, "the share of successes that reach the threshold at their end"),
    "frame_auroc": ("AUROC of frames", "frames", 1, "solved frames against all others"),
    "epic": ("EPIC", "EPIC", -1, "distance to the task's own reward: 0 the same, 0.71 unrelated, 1 opposite"),
    "ece": ("calibration error", "ECE", -1, "of the probability of success that the potential gives"),
    "motionless": (
        "motionless share", "still", -1,
        "pay for doing nothing: 0 that of random behaviour, 1 that of success; the same at any scale and offset",
    ),
}  # fmt: skip


def write_judgement(
    folder: Path,
    judged: Sequence[Judged],
    verdicts: Mapping[str, Verdict],
    division: Division,
    frames: Frames,
    *,
    heading: str,
    about: Mapping[str, Any],
    config: Mapping[str, Any],
    notes: Sequence[str],
    encode_ms: float,
    worst: int,
    kinds: Mapping[str, np.ndarray],
) -> Path:
    """Write `report.html`, whole or not at all.

    Args:
        folder: of the run.
        judged: the rewards, then the controls.
        verdicts: of each, by name.
        division: the cases.
        frames: the pictures of an episode.
        heading: what was judged.
        about: how it was made, for the last table.
        config: of the run.
        notes: what the data could not tell.
        encode_ms: of the encoder, per frame.
        worst: how many films of each kind to show of each reward.
        kinds: kind of counterfactual episode -> some frames of one.
    """
    rewards = [each for each in judged if not each.control]
    cases = {case.index: case for case in division.judged}
    sections = [
        _verdicts(rewards, verdicts),
        _figures(judged),
        published.section(judged),
        _tasks(rewards),
        _outcome(judged, kinds),
        _canaries(judged),
        _grid("Progress", _PROGRESS, GROUP_LEGEND, [(each.name, _progress(each, cases)) for each in rewards]),
        _grid("Ends", _ENDS, GROUP_LEGEND, [(each.name, _ends(each, cases)) for each in rewards]),
        _separation(rewards),
        *(_worst(each, cases, frames, worst) for each in rewards),
        _cost(rewards, encode_ms),
        _method(),
        facts_table(about),
        config_card(config),
    ]
    counts = [(group, sum(case.group == group for case in division.judged)) for group in GROUPS]
    tags = {"judged on": f"{len(cases)} episodes"} | {group: str(count) for group, count in counts if count}
    warning = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return write_page(
        folder,
        heading=heading,
        verb="judge",
        tags="".join(f"<span><b>{escape(k)}</b>{escape(v)}</span>" for k, v in tags.items()),
        result=_result(rewards, verdicts),
        warnings=f'<div class="warning"><b>What the data cannot tell</b><ul>{warning}</ul></div>' if notes else "",
        sections=sections,
    )


def best(rewards: Sequence[Judged], verdicts: Mapping[str, Verdict]) -> Judged | None:
    """The one to take: trusted for the most uses, then the highest of order (the lower way) + AUROC + margin - EPIC."""
    usable = [each for each in rewards if verdicts[each.name].level in ("trust", "care")]

    def merit(each: Judged) -> tuple[int, float]:
        f = {key: figure.value for key, figure in each.figures.items()}
        epic = 0.0 if math.isnan(f["epic"]) else f["epic"]
        margin = 0.0 if math.isnan(f["margin"]) else f["margin"]
        return len(verdicts[each.name].uses), min(f["voc"], f["voc_reversed"]) + f["auroc"] - epic + margin

    return max(usable, key=merit, default=None)


def table(judged: Sequence[Judged], verdicts: Mapping[str, Verdict]) -> str:
    """For the terminal: a row a reward, "–" where a figure is undefined; then the verdicts."""
    names = list(COLUMNS)
    rows = [["reward", *(COLUMNS[name][1] for name in names), "ms"]]
    for each in judged:
        values = [shown(each.figures[name].value) for name in names]
        rows.append([each.name + (" (control)" if each.control else ""), *values, number(each.head_ms)])
    said = [f"{each.name}: {verdicts[each.name].text}" for each in judged if not each.control]
    return "\n".join([*lines(rows), "", *published.table(judged), "", *said])


# Sections -----------------------------------------------------------------------------------------------------

_PROGRESS = (
    "Mean potential from an episode's start (0) to its end (1; of a success, to where it is first solved), with the "
    "middle 80 % of episodes; the dashed line is the threshold. A good reward climbs with successes only."
)
DOTS = 300  # of a group, at most
_ENDS = (
    "The potential at the end of each judged episode; right of the dashed line counts as success. Of a group of more "
    f"than {DOTS}, evenly spaced ones are drawn."
)
GROUP_LEGEND = legend([(group, COLOURS[group]) for group in GROUPS])


def _result(rewards: Sequence[Judged], verdicts: Mapping[str, Verdict]) -> str:
    first = best(rewards, verdicts)
    if first is None:
        return '<p class="note">no reward to recommend</p>'
    f = {key: shown(figure.value) for key, figure in first.figures.items()}
    note = f"order {f['voc']}, reversed {f['voc_reversed']}<br>AUROC {f['auroc']}, τ_a {f['tau_a']}"
    size = "" if len(first.name) < 9 else ' style="font-size: 34px"'
    return f'<p class="note">first choice</p><strong{size}>{escape(first.name)}</strong><p class="note">{note}</p>'


def _verdicts(rewards: Sequence[Judged], verdicts: Mapping[str, Verdict]) -> str:
    rows = "".join(
        f'<b>{escape(each.name)}</b><span><span class="badge {verdicts[each.name].level}">'
        f"{MARKS[verdicts[each.name].level]}</span></span><p>{escape(verdicts[each.name].text)}</p>"
        for each in rewards
    )
    return card("Verdicts", "", f'<div class="verdicts">{rows}</div>')


def _figures(judged: Sequence[Judged]) -> str:
    heads = "".join(
        f'<th class="n" title="{escape(text)}">{escape(title)}</th>' for title, _, _, text in COLUMNS.values()
    )
    body = ""
    for each in judged:
        cells = ""
        for name, (_, _, sign, _) in COLUMNS.items():
            figure, rivals = each.figures[name], [sign * j.figures[name].value for j in judged if not j.control]
            top = max((value for value in rivals if not math.isnan(value)), default=math.nan)
            chosen = not each.control and len(rivals) > 1 and sign * figure.value >= top - 1e-9
            cells += f'<td class="n{" best" if chosen else ""}">{cell(figure)}</td>'
        body += f"<tr{row_class(each)}><th>{escape(each.name)}</th>{cells}</tr>"
    note = (
        "With 95 % intervals below. Green: the best of a column. A dash: undefined on these data. The controls must "
        "fail: one says the same of every frame, the other counts time."
    )
    page = f"<table><thead><tr><th>reward</th>{heads}</tr></thead><tbody>{body}</tbody></table>"
    return card("Figures", note, f'<div class="scroll figures">{page}</div>')


def _tasks(rewards: Sequence[Judged]) -> str:
    """The figures of each task alone, where there are several."""
    names = ("voc", "voc_reversed", "tau_a", "somers_d", "auroc", "ap")
    heads = "".join(f'<th class="n">{escape(COLUMNS[name][0])}</th>' for name in names)
    body = ""
    for each in rewards:
        for task, one in each.tasks.items():
            cells = "".join(f'<td class="n">{cell(one.figures[name])}</td>' for name in names)
            count = f"{one.successes} successes, {one.others} others"
            told = f"{each.name}: {task or 'no instruction'}"
            body += f"<tr><th>{escape(told)}<small>{count}</small></th>{cells}</tr>"
    note = "Each task's own episodes, scored for its own instruction. The figures above are the means of these."
    page = f"<table><thead><tr><th>reward and task</th>{heads}</tr></thead><tbody>{body}</tbody></table>"
    return card("Tasks", note, f'<div class="scroll figures">{page}</div>') if body else ""


def _outcome(judged: Sequence[Judged], kinds: Mapping[str, np.ndarray]) -> str:
    """What each reward pays where robot and outcome part ways, and what such episodes look like."""
    named = [kind for kind in (*WRONG, *RIGHT) if any(kind in each.credit for each in judged)]
    if not named:
        return ""
    body = ""
    heads = "".join(f'<th class="n">{escape(_spaced(kind))}</th>' for kind in named)
    for each in judged:
        cells = ""
        for kind in named:
            figure = each.credit.get(kind, Figure())
            bad = figure.value >= RULES.pose if kind in WRONG else figure.value < 1 - RULES.pose
            cells += f'<td class="n{" bad" if bad else ""}">{cell(figure)}</td>'
        cells += f'<td class="n{" bad" if each.figures["margin"].value < RULES.margin else ""}">'
        body += f"<tr{row_class(each)}><th>{escape(each.name)}</th>{cells}{cell(each.figures['margin'])}</td></tr>"
    ideal = "".join(f'<td class="n"><i>{0 if kind in WRONG else 1}</i></td>' for kind in named)
    body += f'<tr class="control"><th>ideal</th>{ideal}<td class="n"><i>1</i></td></tr>'
    page = (
        f'<table><thead><tr><th>reward</th>{heads}<th class="n">margin</th></tr></thead><tbody>{body}</tbody></table>'
    )
    films = ""
    for kind, frames in kinds.items():
        films += f"<figure>{strip(frames)}<figcaption>{escape(f'{_spaced(kind)}: {SHOWN[kind]}')}</figcaption></figure>"
    note = (
        "What episodes earn in which robot and outcome part ways, as a share of what a success earns over one in which "
        "nothing happens. The margin is the least of those that reach the goal less the greatest of the others. "
        "Red: paid for the pose, or not paid for the outcome."
    )
    return card("Outcome or pose", note, f'<div class="scroll figures">{page}</div><div class="films">{films}</div>')


def _canaries(judged: Sequence[Judged]) -> str:
    heads = "".join(f'<th class="n">{escape(name)}</th>' for name in CANARIES)
    body = ""
    for each in judged:
        cells, broken = "", broken_canaries(each)
        for name in CANARIES:
            canary = each.canaries[name]
            cells += f'<td class="n{" bad" if name in broken else ""}">{_canary(canary)}</td>'
        body += f"<tr{row_class(each)}><th>{escape(each.name)}</th>{cells}</tr>"
    ideal = "".join(f'<td class="n"><i>{text}</i></td>' for text in ("0", "-1", "0", "below 1", "0"))
    body += f'<tr class="control"><th>ideal</th>{ideal}</tr>'
    note = (
        "What films that must not pay gain from first to last frame, as a share of what a success gains; below, the "
        "share of films that reach the threshold. Red: a bar is broken, or it pays like success."
    )
    page = f"<table><thead><tr><th>reward</th>{heads}</tr></thead><tbody>{body}</tbody></table>"
    return card("Canaries", note, f'<div class="scroll figures">{page}</div>')


def _canary(canary: Canary) -> str:
    if not canary.films:
        return UNDEFINED
    fires = "" if math.isnan(canary.fires.value) else f"<small>{canary.fires.value:.0%} of {canary.films} fire</small>"
    return f"{cell(canary.gain)}{fires}"


def _grid(title: str, note: str, above: str, panels: Sequence[tuple[str, str]]) -> str:
    body = "".join(f"<div><h3>{escape(name)}</h3>{svg}</div>" for name, svg in panels)
    return card(title, note, f'{above}<div class="grid3">{body}</div>') if panels else ""


def _progress(judged: Judged, cases: Mapping[int, Case]) -> str:
    curves = []
    for group in GROUPS:
        members = [i for i in judged.potentials if cases[i].group == group]
        said = np.empty((len(members), len(GRID)))
        for k, i in enumerate(members):
            clip = cases[i].clip
            said[k] = np.interp(GRID, np.linspace(0, 1, clip), judged.potentials[i][:clip])
        if members:
            mean = said.mean(0)
            low, high = np.quantile(said, [0.1, 0.9], axis=0, overwrite_input=True)
            curves.append(Curve(f"{group} ({len(said)})", GRID, mean, COLOURS[group], low, high))
    return panel(curves, x_label="share of the episode", level=_level(judged))


def _ends(judged: Judged, cases: Mapping[int, Case]) -> str:
    rows = []
    for group in GROUPS:
        members = [i for i in judged.potentials if cases[i].group == group]
        drawn = members[:: max(-(-len(members) // DOTS), 1)]
        ends = {i: judged.potentials[i][cases[i].end] for i in drawn}
        if ends:
            rows.append((group, COLOURS[group], [(float(end), f"episode {i}: {end:.3f}") for i, end in ends.items()]))
    return dot_rows(rows, _level(judged))


def _separation(rewards: Sequence[Judged]) -> str:
    colours = {each.name: k % 6 + 1 for k, each in enumerate(rewards)}
    rates = [Curve(each.name, *each.roc, colours[each.name]) for each in rewards if each.roc is not None]
    bins = []
    for each in rewards:
        if each.calibration is not None:
            drawn = each.calibration.counts >= RARE * each.calibration.counts.sum()
            points = each.calibration.confidence[drawn], each.calibration.frequency[drawn]
            bins.append(Curve(each.name, *points, colours[each.name], dots=True))
    panels = [
        (name, panel(curves, x_label=label, y_range=(0.0, 1.0), diagonal=True))
        for name, label, curves in (
            ("ROC: found successes", "false alarms", rates),
            ("Reliability: observed share", "predicted probability of success", bins),
        )
        if curves
    ]
    note = (
        "Left: the higher, the better. Right: on the diagonal, a predicted 70 % is right in 7 of 10 cases; rare bins "
        "are not drawn."
    )
    return _grid("Success and failure apart", note, legend(list(colours.items())), panels)


def _worst(judged: Judged, cases: Mapping[int, Case], frames: Frames, count: int) -> str:
    """The failures that look most like success to a reward, and the successes that look least like it."""

    def peak(i: int) -> float:
        return float(judged.potentials[i][~cases[i].rows_solved].max())

    def end(i: int) -> float:
        return float(judged.potentials[i][cases[i].end])

    failures = [i for i in judged.potentials if cases[i].group != "success"]
    successes = [i for i in judged.potentials if cases[i].group == "success"]
    level, films = _level(judged), ""
    for title, members, value in (
        ("Failures it likes most", sorted(failures, key=peak, reverse=True)[:count], peak),
        ("Successes it likes least", sorted(successes, key=end)[:count], end),
    ):
        films += f"<h3>{title}</h3>" if members else ""
        for i in members:
            right = "" if level is None else _right(value is end, value(i) >= level)
            where = "highest" if value is peak else "at its end"
            text = f"episode {i}, {cases[i].group}: {number(value(i))} {where}"
            picture = film(frames(i), judged.potentials[i], level, COLOURS[cases[i].group])
            films += f"<figure>{picture}<figcaption>{escape(text)}{right}</figcaption></figure>"
    note = "From start to end, the potential under the frames."
    return card(f"Worst cases of {judged.name}", note, f'<div class="films">{films}</div>') if films else ""


def _right(success: bool, fired: bool) -> str:
    if success == fired:
        return " · judged rightly"
    return f" · <b>{'false positive' if fired else 'false negative'}</b>"


def _cost(rewards: Sequence[Judged], encode_ms: float) -> str:
    rows = ""
    for each in rewards:
        share = UNDEFINED if math.isnan(encode_ms) else f"{each.head_ms / encode_ms:.1%}"
        rows += (
            f'<tr><th>{escape(each.name)}</th><td class="n">{number(each.head_ms)}</td><td class="n">{share}</td></tr>'
        )
    head = '<thead><tr><th>reward</th><th class="n">heads, ms a frame</th><th class="n">of encoding</th></tr></thead>'
    encoding = "not measured" if math.isnan(encode_ms) else f"{number(encode_ms)} ms a frame"
    note = f"The encoder: {encoding}, once for all rewards. Heads: whole episodes at once, median over episodes."
    return card("Cost", note, f"<table>{head}<tbody>{rows}</tbody></table>")


def _method() -> str:
    rows = "".join(
        f"<tr><th>{escape(title)}</th><td>{escape(text)}</td></tr>" for title, _, _, text in COLUMNS.values()
    )
    rules = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in vars(RULES).items())
    note = (
        "Potentials are judged, before shaping. The threshold of each reward maximises F₀.₅ on a split that is not "
        "judged, and so does the calibration; intervals draw whole episodes with replacement (Wilson's for precision, "
        "recall and films that fire). A figure of 1 in every draw has an interval without width: look at how many "
        f"episodes there are. Bars of the verdicts: {rules}."
    )
    return card("How to read the figures", note, f'<table class="facts"><tbody>{rows}</tbody></table>')


def _level(judged: Judged) -> float | None:
    return None if math.isnan(judged.threshold) else judged.threshold


def _spaced(kind: str) -> str:
    return kind.replace("_", " ")
