"""A judgement under the names of public benchmarks, for whoever compares with a paper (`judgement.PUBLISHED`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from embodied.judging.cells import cell, lines, row_class, shown
from embodied.judging.judgement import Judged
from embodied.reports.page import card

NAMES = {  # figure -> what it is, and where it is told
    "voc_spearman": "Spearman's correlation with time along successes (GVL, TOPReward, Robo-Dopamine)",
    "voc_pearson": "Pearson's, the same (Robometer's reward alignment)",
    "pairwise_acc": "pairs of 15 moments of a success of which the later one scores higher",
    "kendall_tau": "τ over n(n-1)/2, one episode of each quality at a time (Robometer's policy ranking)",
    "ranking_acc": "pairs of episodes of different quality whose better one ends higher (Robometer); ties are wrong",
    "succ_fail_diff": "mean end of successes less that of the worst quality (Robometer)",
    "mae_ordinal": "mean distance in levels of the end, as 1 to 5, from the given level (RoboReward); 0 is best",
    "success_auprc": "average precision of solved rows (Robometer)",
    "confusion_margin": "mean end under the own instruction less that under other tasks' (Robometer)",
}


def section(judged: Sequence[Judged]) -> str:
    """Part of the page; "" where none of the figures is defined."""
    named = _defined(judged)
    heads = "".join(f'<th class="n" title="{escape(NAMES[name])}">{name}</th>' for name in named)
    body = "".join(
        f"<tr{row_class(each)}><th>{escape(each.name)}</th>"
        + "".join(f'<td class="n">{cell(each.figures[name])}</td>' for name in named)
        + "</tr>"
        for each in judged
    )
    meanings = "".join(f"<tr><th>{name}</th><td>{escape(NAMES[name])}</td></tr>" for name in named)
    note = (
        "As public benchmarks tell them: each task apart, then the mean over tasks, successes and failures as recorded."
    )
    table = f"<table><thead><tr><th>reward</th>{heads}</tr></thead><tbody>{body}</tbody></table>"
    return (
        card(
            "Under the names of public benchmarks",
            note,
            f'<div class="scroll figures">{table}</div><table class="facts"><tbody>{meanings}</tbody></table>',
        )
        if named
        else ""
    )


def table(judged: Sequence[Judged]) -> list[str]:
    """For the terminal: a row a reward; nothing where none of the figures is defined."""
    named = _defined(judged)
    rows = [["", *named], *([each.name, *(shown(each.figures[name].value) for name in named)] for each in judged)]
    return lines(rows) if named else []


def _defined(judged: Sequence[Judged]) -> list[str]:
    return [name for name in NAMES if any(not math.isnan(each.figures[name].value) for each in judged)]
