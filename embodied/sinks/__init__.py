"""Where watched moments go: lines, a table, a video, a LeRobot dataset, Rerun, MCAP.

sinks = make_sinks(live=True, record=Path("session"), lines=1, view="web")

A record's folder holds, by format: `readings.jsonl` (always), `readings.parquet`, `overlay.mp4`, `dataset/`,
`watch.rrd`, `watch.mcap`. A later run into the same folder puts its files beside the earlier ones (`overlay-002.mp4`),
and its episodes into the same dataset where they fit. What a killed run left unfinished is finished when the folder is
opened again, or by `python -m embodied.sinks.recover FOLDER`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from embodied.errors import UserError, nearest

if TYPE_CHECKING:  # torch comes with it, and a process that only packs starts without
    from embodied.watching.watched import Sink

FORMATS = ("jsonl", "parquet", "overlay", "lerobot", "rerun", "mcap")
DEFAULT_FORMATS = ("jsonl", "parquet", "overlay", "lerobot")
VIEWS = ("web", "window")
LIVE_FPS = 10  # of the dataset of a live source, at most: its rows are copied where the model is slower


def make_sinks(
    *,
    live: bool,
    record: Path | str | None = None,
    formats: Sequence[str] | None = None,
    view: str | None = None,
    lines: int | None = None,
    fps: float | None = None,
) -> list[Sink]:
    """The sinks asked for; to be closed in this order.

    Args:
        live: the source waits for nobody; so a sink that is too slow leaves moments out and counts them in its
            attribute `skipped`. Else the sinks get every moment.
        record: a folder, new or recorded into before.
        formats: of the record, from `FORMATS`; without it, `DEFAULT_FORMATS`.
        view: Rerun live: "web" (its address is the sink's `address`) or "window"; without it, none.
        lines: a descriptor for JSON lines, such as 1; without it, none.
        fps: moments a second of the source, where it tells: of the dataset too, up to `LIVE_FPS` of a live one.

    Raises:
        UserError: an unknown format or view, a package that is missing, or a folder that cannot be used.
    """
    formats = DEFAULT_FORMATS if formats is None else formats
    for each in formats:
        if each not in FORMATS:
            raise UserError(f"formats must be of {', '.join(FORMATS)}; got {each!r}. {nearest(each, FORMATS)}")
    if view is not None and view not in VIEWS:
        raise UserError(f"view must be {' or '.join(VIEWS)}; got {view!r}.")
    with ExitStack() as undo:
        made: list[Sink] = []

        def keep(sink: Sink) -> None:
            made.append(sink)
            undo.callback(sink.close)

        if lines is not None:
            from embodied.sinks.jsonl import LinesOut

            keep(LinesOut(lines, live=live))
        if view is not None:
            from embodied.sinks.rerun_live import LiveView

            keep(LiveView(window=view == "window", live=live))
        if record is not None:
            from embodied.sinks.record import Folder, recording

            rate = max(round(min(fps or LIVE_FPS, LIVE_FPS)), 1) if live else fps or LIVE_FPS
            folder = Folder(Path(record))
            with ExitStack() as failed:
                failed.callback(folder.close)
                for sink in recording(folder, formats, live=live, fps=rate):
                    keep(sink)
                failed.pop_all()
            keep(folder)
        undo.pop_all()
        return made
