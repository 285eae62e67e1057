"""A film's bytes follow from its frames alone: not from the processor's own fast paths, nor from what lay in memory."""

import numpy as np
import pytest

import embodied.datasets.video
import embodied.reports.video

FRAMES = np.random.default_rng(0).integers(0, 256, (12, 64, 64, 3), np.uint8)


def dataset(folder):
    embodied.datasets.video.write_video(folder / "film.mp4", FRAMES, 20)
    return (folder / "film.mp4").read_bytes()


def report(folder):
    embodied.reports.video.write_video(folder / "film.mp4", FRAMES, np.linspace(0, 1, len(FRAMES)))
    return (folder / "film.mp4").read_bytes()


@pytest.mark.parametrize("film", [dataset, report])
def test_the_same_frames_give_the_same_film_with_and_without_fast_paths(film, tmp_path, monkeypatch):
    module = {dataset: embodied.datasets.video, report: embodied.reports.video}[film]
    written = film(tmp_path)
    monkeypatch.setattr(module, "REPEATABLE", {"x264-params": "asm=0"})
    assert film(tmp_path) == written
