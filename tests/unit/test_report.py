"""Videos decode to what was put in; the report shows a run's numbers and asks nothing of the network."""

from __future__ import annotations

import json
import re
from xml.etree import ElementTree

import av
import numpy as np
import pytest
import yaml

from embodied.reports import page as report
from embodied.reports import video
from embodied.reports.charts import Series, line_chart, number, sparkline, ticks
from embodied.reports.page import read_progress, write_report
from embodied.reports.video import write_video
from tests.pages import Page

COLUMNS = (
    "time/total_timesteps",
    "rollout/ep_rew_mean",
    "rollout/ep_env_rew_mean",
    "reward/clip_mean",
    "reward/clip_std",
)


def frames(count: int, size: int = 64) -> list[np.ndarray]:
    """A red square that moves right over grey."""
    pictures = np.full((count, size, size, 3), 128, np.uint8)
    for i in range(count):
        pictures[i, 20:40, i * 4 : i * 4 + 16] = (220, 20, 20)
    return list(pictures)


def decode(path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def run_folder(path, **about):
    """A small finished run."""
    (path / "videos").mkdir(parents=True)
    config = {
        "env": {"id": "embodied/desk-drawer-v0"},
        "reward": {"_target_": "rewards.clip_goal.clip_scorer", "goal": "the drawer is <open> & bright"},
        "encoder": {"_target_": "rewards.encoders.embedded_encoder"},
        "policy": {"_target_": "policies.sb3.sac"},
        "seed": 3,
    }
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    values = {"verb": "train", "status": "finished", "commit": "abc123", "versions": {"torch": "2.13.0"}}
    values |= {
        "command": ["/somewhere/bin/embodied", "train", "reward.goal=the drawer"],
        "hardware": {"cpu": "Some CPU", "gpu": None},
    }
    (path / "run.json").write_text(json.dumps(values | about))
    rows = [",".join(COLUMNS), "1000,1.5,2.5,0.25,0.01", "2000,,3.5,0.5,nan", "3000,4.5,3,0.75,0.02"]
    (path / "progress.csv").write_text("\n".join(rows) + "\n")
    summary = {"ci_low": 0.8, "ci_high": 0.95, "episodes": 50, "mean_reward": 1.0, "mean_env_reward": 2.0}
    lines = [json.dumps({"steps": s, "success_rate": r} | summary) for s, r in ((1000, 0.1), (3000, 0.9))]
    (path / "evaluations.jsonl").write_text("\n".join(lines) + "\n")
    write_video(path / "videos" / "final-episode0-success.mp4", frames(8), np.linspace(0, 1, 8), title="final")
    return path


@pytest.mark.parametrize("fewer", [0, 1])
def test_a_video_shows_the_frames_and_the_reward_so_far(tmp_path, fewer):
    path = tmp_path / "deep" / "episode.mp4"
    write_video(path, frames(10), np.linspace(-1, 1, 10 - fewer), title="“the drawer is open”")
    shown = decode(path)
    assert len(shown) == 10
    assert shown[0].shape == (320 + report.STRIP, 320, 3)
    for i, picture in enumerate(shown):  # five times larger
        red = picture[150, (i * 4 + 8) * 5].astype(int)
        assert red[0] > 180
        assert red[1] < 60
    bright = [int((p[320 + 40 :, :, 2] > 180).sum()) for p in shown]
    assert bright[-1] > bright[1]  # the curve so far grows
    assert list(path.parent.iterdir()) == [path]


def test_odd_sizes_are_cut_to_even_ones(tmp_path):
    write_video(tmp_path / "v.mp4", [np.zeros((333, 501, 3), np.uint8)] * 2, [0.0, 0.0])
    assert decode(tmp_path / "v.mp4")[0].shape == (332 + report.STRIP, 500, 3)


@pytest.mark.parametrize(
    ("pictures", "rewards", "error", "text"),
    [
        ([], [], ValueError, "rewards must be one per frame"),
        (frames(5), [0.0] * 3, ValueError, "got 3 for 5"),
        (frames(2), [0.0, np.nan], ValueError, "must be finite"),
        ([np.zeros((8, 8, 3), np.float32)], [0.0], TypeError, r"uint8 \(H, W, 3\).*got float32"),
        ([np.zeros((3, 8, 8), np.uint8)], [0.0], TypeError, "of one size"),
    ],
)
def test_a_bad_video_is_refused_before_a_file_appears(tmp_path, pictures, rewards, error, text):
    with pytest.raises(error, match=text):
        write_video(tmp_path / "v.mp4", pictures, rewards)
    assert list(tmp_path.iterdir()) == []


def test_a_video_that_fails_half_way_leaves_nothing(tmp_path, monkeypatch):
    def fail(self, index):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(video._RewardStrip, "draw", fail)
    with pytest.raises(OSError, match="No space"):
        write_video(tmp_path / "v.mp4", frames(2), [0.0, 1.0])
    assert list(tmp_path.iterdir()) == []


def test_a_report_shows_the_run_and_needs_no_network(tmp_path):
    page = write_report(run_folder(tmp_path / "run")).read_text("utf-8")
    tags = Page()
    tags.feed(page)
    assert tags.open == []
    assert all(link.startswith("data:") for link in tags.links)
    assert not re.search(r"https?://|url\(|@import", page)
    assert sum(link.startswith("data:video/mp4") for link in tags.links) == 1
    assert sum(link.startswith("data:image/jpeg") for link in tags.links) == report.STILLS
    for text in (
        "the drawer is &lt;open&gt; &amp; bright", "<strong>90<small>%", "45 of 50", "80% to 95%", "<b>reward</b>clip<",
        "<b>encoder</b>embedded<", "policies.sb3.sac", "embodied/desk-drawer-v0", "abc123", "torch 2.13.0", "Some CPU",
        "<code>embodied train &#x27;reward.goal=the drawer&#x27;", "Reward learned from", "own reward",
        "final episode0 success",
    ):  # fmt: skip
        assert text in page, text
    assert "Warning" not in page
    assert {p.name for p in (tmp_path / "run").iterdir()} >= {"report.html"}
    assert not list((tmp_path / "run").glob(".*.part*"))


def test_a_report_of_a_run_that_was_killed_while_it_wrote(tmp_path):
    folder = run_folder(tmp_path / "run")
    (folder / "videos" / ".later.part123.mp4").write_bytes(b"half a film")
    with (folder / "evaluations.jsonl").open("a") as lines:
        lines.write('{"steps": 4000, "succ')
    text = write_report(folder).read_text()
    assert text.count("<video") == 1
    assert "90<small>%" in text


def test_stills_are_of_the_whole_film(tmp_path):
    folder = run_folder(tmp_path / "run")
    for old in (folder / "videos").iterdir():
        old.unlink()
    write_video(folder / "videos" / "long.mp4", frames(23), np.zeros(23), title="two\nlines")
    stills = re.findall(r'alt="still \d+" src="data:image/jpeg;base64,([^"]+)"', write_report(folder).read_text())
    assert len(stills) == 6


def test_a_report_of_a_run_that_wrote_nothing_yet(tmp_path):
    page = write_report(tmp_path).read_text("utf-8")
    assert "not evaluated yet" in page
    with pytest.raises(FileNotFoundError, match="does not exist"):
        write_report(tmp_path / "nowhere")


def test_a_world_that_does_not_tell_success(tmp_path):
    line = {"steps": 10, "success_rate": None, "ci_low": None, "ci_high": None, "episodes": 5, "mean_env_reward": -12.5}
    (tmp_path / "evaluations.jsonl").write_text(json.dumps(line) + "\n")
    page = write_report(tmp_path).read_text("utf-8")
    assert "-12.5" in page
    assert "does not tell success" in page


def test_a_separate_evaluation_is_the_result(tmp_path):
    folder = run_folder(tmp_path / "run")
    judged = {"steps": 3000, "success_rate": 0.96, "ci_low": 0.87, "ci_high": 0.99, "episodes": 100}
    (folder / "evaluation.json").write_text(json.dumps(judged))
    page = write_report(folder).read_text("utf-8")
    assert "<strong>96<small>%" in page
    assert "96 of 100" in page


def test_the_true_reward_has_no_encoder(tmp_path):
    config = {"reward": {"_target_": None}, "encoder": {"_target_": "rewards.encoders.embedded_encoder"}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    page = write_report(tmp_path).read_text("utf-8")
    assert "<b>reward</b>the task&#x27;s own<" in page
    assert "<b>encoder" not in page


def test_divergence_is_a_visible_warning(tmp_path):
    rows = "time/total_timesteps,reward/divergence\n1000,0.5\n2000,3.5\n3000,6.25\n"
    (tmp_path / "progress.csv").write_text(rows)
    page = write_report(tmp_path).read_text("utf-8")
    assert 'role="alert"' in page
    assert "From step 2000" in page
    assert "6.2 standard errors" in page
    (tmp_path / "progress.csv").write_text(rows.replace("3.5", "2.5").replace("6.25", "2.9"))
    assert 'role="alert"' not in write_report(tmp_path).read_text("utf-8")


def test_progress_leaves_out_what_is_empty_or_not_a_number(tmp_path):
    progress = read_progress(run_folder(tmp_path / "run") / "progress.csv")
    assert progress["rollout/ep_rew_mean"] == ([1000, 3000], [1.5, 4.5])
    assert progress["reward/clip_std"] == ([1000, 3000], [0.01, 0.02])


def test_a_chart_puts_points_where_they_belong():
    series = Series("success", [0.0, 50.0, 100.0], [0.0, 0.5, 1.0], [0.0, 0.4, 0.9], [0.1, 0.6, 1.0])
    svg = ElementTree.fromstring(line_chart([series], x_label="steps", percent=True, marks=True, width=500))
    line = next(e for e in svg.iter("polyline"))
    points = [tuple(map(float, p.split(","))) for p in line.attrib["points"].split()]
    assert points == [(56, 206), (270, 110), (484, 14)]
    tips = [e.text for e in svg.iter("title")]
    assert tips[1] == "success: 50% (40% to 60%) at 50 steps"


@pytest.mark.parametrize("values", [[0.0, 0.0], [1e-12, 1e-12], [-5.0, -5.0], [3e6, 3e6 + 1], [7.0]])
def test_a_chart_of_a_constant_still_draws(values):
    svg = line_chart([Series("flat", [float(i) for i in range(len(values))], values)], x_label="steps")
    assert "nan" not in svg
    assert "inf" not in svg.replace("infinite", "")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_chart_draws_all_points_but_those_that_are_no_numbers(bad):
    series = [Series("a", [0.0, 1.0, 2.0], [1.0, bad, 3.0]), Series("b", [0.0, 1.0], [bad, bad])]
    svg = ElementTree.fromstring(line_chart(series, x_label="steps", marks=True))
    assert [len(line.attrib["points"].split()) for line in svg.iter("polyline")] == [2, 0]
    spark = ElementTree.fromstring(sparkline([0.0, bad, 1.0]))
    assert len(next(spark.iter("polyline")).attrib["points"].split()) == 2


def test_ticks_are_round_and_cover_the_range():
    assert ticks(0.0, 100.0) == [0, 20, 40, 60, 80, 100]
    assert ticks(-0.3, 0.9) == pytest.approx([-0.5, -0.25, 0, 0.25, 0.5, 0.75, 1.0])
    assert [number(v) for v in (0.042134, 1234.0, 98_765.0, 1_200_000.0, 0.0)] == [
        "0.0421",
        "1234",
        "98.8k",
        "1.2M",
        "0",
    ]


def test_a_report_of_a_goal_list_names_them_all():
    assert report._goal({"reward": {"goal": None, "goals": ["a", "b"]}}) == "“a / b”"
    assert report._goal({"reward": {"goals": {"one": "a"}}}) == "“a”"
    assert report._goal({"reward": {"_target_": None}, "env": {"id": "cartpole"}}) == "cartpole"


def test_controls_lie_below_the_reward_and_not_over_it(tmp_path):
    """A browser draws its controls over the last pixels of the video's box, so the box is that much higher."""
    run_folder(tmp_path / "run")
    write_video(tmp_path / "run/videos/final_9_success.mp4", frames(6), np.arange(5.0))
    page = write_report(tmp_path / "run").read_text("utf-8")
    height, width = decode(tmp_path / "run/videos/final_9_success.mp4")[0].shape[:2]
    assert f"--shape:{height / width:.4f}" in page
    rule = next(line for line in page.splitlines() if line.startswith("video {"))
    assert f"height: calc(100cqw * var(--shape) + {report.CONTROLS}px)" in rule
    assert "object-position: top" in rule
    assert "container-type: inline-size" in next(line for line in page.splitlines() if line.startswith("figure {"))


def test_a_narrow_page_shows_a_whole_chart(tmp_path):
    run_folder(tmp_path / "run")
    line = {"success_rate": 0.5, "ci_low": 0.2, "ci_high": 0.8, "episodes": 8, "mean_reward": 1, "mean_env_reward": 1}
    lines = [json.dumps(line | {"steps": steps}) for steps in (1000, 2000)]
    (tmp_path / "run/evaluations.jsonl").write_text("\n".join(lines))
    page = write_report(tmp_path / "run").read_text("utf-8")
    charts = re.findall(r'<div class="(wide|narrow)"><svg viewBox="0 0 (\d+) ', page)
    assert [name for name, _ in charts] == ["wide", "narrow"]
    assert int(charts[1][1]) <= 360  # so that its text is readable on a page of 400 px
    assert not re.findall(r"svg \{ min-width", page)
    assert re.search(r"max-width: 760px\) \{[^@]*\.wide \{ display: none; \} \.narrow \{ display: block; \}", page)


def test_success_is_of_the_episodes_whose_world_tells_it(tmp_path):
    told = {"success_rate": 0.75, "ci_low": 0.3, "ci_high": 0.95, "mean_reward": 1.0, "mean_env_reward": 2.0}
    for known, words in ((8, "success in 6 of 8 episodes<br>95"), (4, "success in 3 of 4 episodes<br>4 more do not")):
        run_folder(tmp_path / str(known))
        file = tmp_path / str(known) / "evaluation.json"
        file.write_text(json.dumps(told | {"episodes": 8, "known": known}))
        assert words in write_report(tmp_path / str(known)).read_text("utf-8")
