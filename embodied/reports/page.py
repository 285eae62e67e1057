"""What a person looks at once a run is over: one self-contained page."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import av
import numpy as np
import yaml

from embodied.building.goals import parts_of
from embodied.files import write_text
from embodied.reports.charts import Series, interval_bar, line_chart, number, sparkline
from embodied.reports.video import STRIP
from embodied.runs import parsed
from embodied.training.divergence import ALARM

TRUE_REWARD = "the task's own"
SHOWN_VIDEOS, STILLS = 4, 6
WIDE, NARROW = 980, 360  # px, of a chart that has a row to itself, on a wide page and on a narrow one
CONTROLS = 72  # px that a browser's controls take below a video, so that they cover neither picture nor reward


def write_report(run_folder: Path | str) -> Path:
    """Write `report.html` into a run folder, from the files that are there.

    Reads config.yaml, run.json, progress.csv, evaluations.jsonl, evaluation.json (of `embodied evaluate`, which then is
    the result), imagination.json and videos/*.mp4; each part appears once its file does, so a run that was stopped has
    a report too. Needs no network to be looked at.

    Args:
        run_folder: of `embodied train` or `embodied evaluate`.

    Returns:
        The page's path.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    folder = Path(run_folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"write_report: run_folder must be a run's folder; got {folder}, which does not exist.")
    config = yaml.safe_load(_text(folder / "config.yaml")) or {}
    about = json.loads(_text(folder / "run.json") or "{}")
    progress = read_progress(folder / "progress.csv")
    evaluations = [found for line in _text(folder / "evaluations.jsonl").splitlines() if (found := parsed(line))]
    judged = json.loads(_text(folder / "evaluation.json") or "null") or (evaluations[-1] if evaluations else None)
    sections = (
        _curves(progress, evaluations),
        _videos(sorted((folder / "videos").glob("[!.]*.mp4"), key=lambda p: p.stat().st_mtime)),
        _imagination(json.loads(_text(folder / "imagination.json") or "null")),
        _components(progress),
        facts_table(about),
        config_card(config),
    )
    goal = _goal(config)
    return write_page(
        folder,
        heading=goal,
        verb=str(about.get("verb", "run")),
        tags=_tags(config, about, progress),
        result=_result(judged),
        warnings=_warnings(about, progress),
        sections=sections,
    )


def write_page(
    folder: Path, *, heading: str, verb: str, tags: str, result: str, warnings: str, sections: Sequence[str]
) -> Path:
    """Write `report.html` into a folder, whole or not at all; the heading is text, the other parts are HTML."""
    page = Template(Path(__file__).with_name("report.html").read_text("utf-8")).substitute(
        controls=CONTROLS,
        title=escape(f"{heading} · embodied"),
        eyebrow=escape(f"embodied · {verb} · {folder.resolve().name}"),
        heading=escape(heading),
        tags=tags,
        result=result,
        warnings=warnings,
        body="\n".join(section for section in sections if section),
    )
    write_text(folder / "report.html", page)
    return folder / "report.html"


def read_progress(path: Path) -> dict[str, tuple[list[float], list[float]]]:
    """SB3's progress.csv as key -> (steps, values), leaving out what is empty or not a number."""
    columns: dict[str, tuple[list[float], list[float]]] = {}
    for row in csv.DictReader(io.StringIO(_text(path))):
        step = _float(row.get("time/total_timesteps"))
        for key, text in row.items():
            value = _float(text)
            if key and step is not None and value is not None:
                xs, ys = columns.setdefault(key, ([], []))
                xs.append(step)
                ys.append(value)
    return columns


# Sections -----------------------------------------------------------------------------------------------


def _goal(config: Mapping[str, Any]) -> str:
    """The run in one sentence: the goal text, else the world's name."""
    reward = config.get("reward") or {}
    # Of several rewards, the first that has a goal.
    goal = next((goal for part in parts_of(reward).values() if (goal := part.get("goal") or part.get("goals"))), None)
    if isinstance(goal, Mapping):
        goal = list(goal.values())
    if isinstance(goal, list):
        goal = " / ".join(str(g) for g in goal)
    return f"“{goal}”" if goal else _world(config)


def _world(config: Mapping[str, Any]) -> str:
    env = config.get("env") or {}
    return str(env.get("id", "a run") if isinstance(env, Mapping) else env)


def _tags(config: Mapping[str, Any], about: Mapping[str, Any], progress: Mapping[str, Any]) -> str:
    names = {part: _target(config.get(part)) for part in ("reward", "encoder", "policy")}
    if names["reward"] == TRUE_REWARD:
        del names["encoder"]
    shown: dict[str, Any] = {"world": _world(config), **names, "seed": config.get("seed", about.get("seed"))}
    last = {column: values[-1] for column, (_, values) in progress.items()}
    for name, column in (("steps", "total_timesteps"), ("time", "time_elapsed"), ("steps/s", "fps")):
        if (value := last.get(f"time/{column}")) is not None:
            shown[name] = _duration(value) if name == "time" else number(value)
    if (status := about.get("status")) not in (None, "finished", "done"):
        shown["status"] = status
    return "".join(f"<span><b>{escape(k)}</b>{escape(str(v))}</span>" for k, v in shown.items() if v not in (None, ""))


def _target(part: Any) -> str:
    """What a person calls a config's `_target_`."""
    if not part:
        return ""
    if part.get("_target_") is None:
        return TRUE_REWARD
    name = str(part["_target_"]).rpartition(".")[2].removesuffix("_scorer").removesuffix("_encoder")
    return f"{name} {part['model']}" if part.get("model") else name


def _result(judged: Mapping[str, Any] | None) -> str:
    if judged is None:
        return '<p class="note">not evaluated yet</p>'
    rate, low, high, n = (judged[k] for k in ("success_rate", "ci_low", "ci_high", "episodes"))
    if rate is None and "mean_env_reward" not in judged:  # practice in a world that tells neither
        said = f"success is unknown; the model alone judged, and said yes to {judged['forward']['said_success']}"
        return f'<strong>?</strong><p class="note">{said} of {n} attempts</p>'
    if rate is None:
        text = f"mean return of {n} episodes under the task's own reward; this world does not tell success"
        return f'<strong>{number(judged["mean_env_reward"])}</strong><p class="note">{text}</p>'
    known = judged.get("known", n)
    untold = f"<br>{n - known} more do not tell" if known < n else ""
    return (
        f"<strong>{100 * rate:.0f}<small>%</small></strong>{interval_bar(rate, low, high)}"
        f'<p class="note">success in {round(rate * known)} of {known} episodes{untold}<br>'
        f"95 % interval {low:.0%} to {high:.0%}</p>"
    )


def _warnings(about: Mapping[str, Any], progress: Mapping[str, tuple[list[float], list[float]]]) -> str:
    texts = [str(text) for text in about.get("warnings", [])]
    steps, values = progress.get("reward/divergence", ([], []))
    if not texts and any(value > ALARM for value in values):
        first = next(step for step, value in zip(steps, values, strict=True) if value > ALARM)
        texts = [
            f"From step {number(first)} the reward learned from rose while the true result fell, by up to "
            f"{max(values):.1f} standard errors. The policy may be exploiting the reward: look at the videos."
        ]
    if not texts:
        return ""
    items = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return f'<div class="warning" role="alert"><b>Warning</b><ul>{items}</ul></div>'


def _curves(progress: Mapping[str, tuple[list[float], list[float]]], evaluations: Sequence[Mapping[str, Any]]) -> str:
    cards = []
    points = list({e["steps"]: e for e in evaluations if e["success_rate"] is not None}.values())  # a step's last
    rollout = progress.get("rollout/success_rate")
    if points:
        columns = ([float(e[key]) for e in points] for key in ("steps", "success_rate", "ci_low", "ci_high"))
        lines = [Series("evaluation", *columns)]
        note = "At fixed checkpoints, deterministic policy; the band is the 95 % interval."
        cards.append(card("Success", note, _wide_chart(lines, marks=True)))
    elif rollout:
        chart = _wide_chart([Series("training", *rollout)])
        cards.append(card("Success", "Of training episodes, with exploration noise.", chart))
    for key, title, note, colour in (
        ("rollout/ep_rew_mean", "Reward learned from", "Mean return of training episodes.", 1),
        ("rollout/ep_env_rew_mean", "The task's own reward", "Same episodes; never learned from, only watched.", 2),
    ):
        if key in progress:
            cards.append(card(title, note, line_chart([Series(title, *progress[key])], x_label="steps", colour=colour)))
    return f'<div class="grid2">{"".join(cards)}</div>' if cards else ""


def _wide_chart(lines: Sequence[Series], *, marks: bool = False) -> str:
    """Success over steps, drawn for a row of its own and again for a narrow page, where its text would be too small."""
    return "".join(
        f'<div class="{name}">'
        + line_chart(lines, x_label="steps", percent=True, marks=marks, colour=3, width=width)
        + "</div>"
        for name, width in (("wide", WIDE), ("narrow", NARROW))
    )


def _videos(paths: Sequence[Path]) -> str:
    if not paths:
        return ""
    figures = []
    for path in paths[-SHOWN_VIDEOS:]:
        data, shape = base64.b64encode(path.read_bytes()).decode(), _shape(path)
        figures.append(
            f'<figure><video style="--shape:{shape:.4f}" controls autoplay muted loop playsinline '
            f'src="data:video/mp4;base64,{data}"></video>'
            f"<figcaption>{escape(path.stem.replace('_', ' ').replace('-', ' '))}</figcaption></figure>"
        )
    stills = "".join(f'<img alt="still {i + 1}" src="{src}">' for i, src in enumerate(_stills(paths[-1])))
    more = f" The newest {SHOWN_VIDEOS} of {len(paths)}." if len(paths) > SHOWN_VIDEOS else ""
    return card(
        "Episodes",
        f"With the reward drawn in.{more} Below, stills of the last one, from start to end.",
        f'<div class="videos">{"".join(figures)}</div><div class="stills">{stills}</div>',
    )


def _shape(path: Path) -> float:
    """Height over width of a video."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return stream.height / stream.width


def _stills(path: Path) -> list[str]:
    """A few frames of a video as data URLs, evenly spaced, first and last among them."""
    urls = []
    with av.open(str(path)) as container:
        count = container.streams.video[0].frames
        chosen = set(np.linspace(0, count - 1, min(STILLS, count)).round().astype(int).tolist())
        for i, frame in enumerate(container.decode(video=0)):
            if i not in chosen:  # a long film's pictures would not fit in memory together
                continue
            image, buffer = frame.to_image(), io.BytesIO()
            image = image.crop((0, 0, image.width, image.height - STRIP))
            image.thumbnail((240, 240))
            image.save(buffer, "JPEG", quality=82)
            urls.append("data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode())
    return urls


def _imagination(found: Mapping[str, Any] | None) -> str:
    """What a world model imagined, against what happened."""
    if found is None:
        return ""
    ahead = found["horizon"]
    steps = [float(k) for k in range(ahead + 1)]
    observed = [Series("imagined", steps, found["observation_error"]), Series("unchanged", steps, found["still_error"])]
    spread = [found["reward_spread"]] * ahead
    rewards = [Series("imagined", steps[1:], found["reward_error"]), Series("its mean", steps[1:], spread)]
    cards = [
        ("Imagined observations", "Squared error in units of variance; beside it, of supposing no change.", observed),
        ("Imagined rewards", "Root mean square error; beside it, of always supposing the mean.", rewards),
    ]
    if not found["observation_error"]:  # of images alone
        del cards[0]
    shown = [card(title, note, line_chart(lines, x_label="steps ahead")) for title, note, lines in cards]
    note = f"One episode: as it was, and as it was imagined {ahead} steps before."
    example = found["example"]
    for name, each in {"reward": example["reward"], **example["observation"]}.items():
        first = ahead if name == "reward" else ahead + 1
        lines = [
            Series(kind, [float(first + k) for k in range(len(each[kind]))], each[kind])
            for kind in ("true", "imagined")
        ]
        shown.append(card(name, note, line_chart(lines, x_label="step")))
    return f'<div class="grid2">{"".join(shown)}</div>'


def _components(progress: Mapping[str, tuple[list[float], list[float]]]) -> str:
    rows = ""
    for name in [found[1] for key in progress if (found := re.fullmatch("reward/(.+)_mean", key))]:
        means, spreads = progress[f"reward/{name}_mean"][1], progress.get(f"reward/{name}_std", ([], [math.nan]))[1]
        cells = "".join(f'<td class="n">{number(v)}</td>' for v in (means[0], means[-1], max(means), spreads[-1]))
        rows += f"<tr><th>{escape(name)}</th><td>{sparkline(means)}</td>{cells}</tr>"
    if not rows:
        return ""
    note = "Potential of each head, mean over recent steps."
    latency = [number(progress[k][1][-1]) for k in ("reward/latency_ms_p50", "reward/latency_ms_p95") if k in progress]
    if len(latency) == 2:
        note += f" One encoder call takes {latency[0]} ms (p95 {latency[1]} ms)."
    titles = "".join(f'<th class="n">{t}</th>' for t in ("first", "last", "highest", "spread"))
    head = f"<thead><tr><th>head</th><th>over time</th>{titles}</tr></thead>"
    return card("Reward components", note, f'<div class="scroll"><table>{head}<tbody>{rows}</tbody></table></div>')


def facts_table(about: Mapping[str, Any]) -> str:
    """run.json as a table; inner mappings become one line."""
    rows = ""
    for key, value in about.items():
        if key in ("warnings", "verb") or value in (None, "", [], {}):
            continue
        if isinstance(value, Mapping):
            value = ", ".join(f"{k} {v}" for k, v in value.items() if v not in (None, ""))
        elif isinstance(value, list):
            value = shlex.join(["embodied", *map(str, value[1:])] if key == "command" else map(str, value))
        shown = escape(str(value))
        if key in ("command", "commit"):
            shown = f"<code>{shown}</code>"
        rows += f"<tr><th>{escape(key)}</th><td>{shown}</td></tr>"
    return card("Where this comes from", "", f'<table class="facts"><tbody>{rows}</tbody></table>') if rows else ""


def config_card(config: Mapping[str, Any]) -> str:
    """The config, folded away."""
    if not config:
        return ""
    text = escape(yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))
    return f'<section class="card"><details><summary>Config</summary><pre>{text}</pre></details></section>'


def card(title: str, note: str, content: str) -> str:
    """A section of the page; the note is text, the content HTML."""
    note = f'<p class="note">{escape(note)}</p>' if note else ""
    return f'<section class="card"><h2>{escape(title)}</h2>{note}{content}</section>'


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s"


def _text(path: Path) -> str:
    return path.read_text("utf-8") if path.is_file() else ""


def _float(text: Any) -> float | None:
    """A finite number, or None."""
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None
