"""Dynamic batching: the frames of all clients pass through the encoder together, on one thread.

While a batch is encoded the next one gathers. A batch takes one frame of each client in turn, again and again until it
is full, so a client that sends a thousand frames at once waits for its own and nobody else does.

Shape letters: N frames, D feature width; H, W image.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from embodied import scoring
from embodied.serving.limits import RequestLimits
from embodied.serving.protocol import RefusedError
from rewards.core import Scorer

Finish = Callable[[list["EncodingJob"]], list[Any]]


@dataclass(eq=False)
class EncodingJob:
    """One client's frames, waiting together.

    Attributes:
        client: whose turn it takes.
        frames: N of (H, W, 3) uint8, of any sizes.
        future: of the answer, on the event loop.
        stream: what the rows go to, where `finish` wants it; None: the features are the answer.
        features: N of (D,) float32 so far.
    """

    client: Hashable
    frames: Sequence[np.ndarray]
    future: asyncio.Future[Any]
    stream: Any = None
    features: list[np.ndarray] = field(default_factory=list)
    taken: int = 0
    since_s: float = field(default_factory=time.monotonic)


class Batcher:
    """Encodes what clients submit, on a thread of its own.

    Args:
        scorer: its encoder is used.
        limits: `queue_frames`, `queue_pixels` and `batch_pixels` bound what waits and what is encoded at once.
        max_batch: frames of one batch.
        max_wait_ms: how long frames wait for others before they are encoded; not at all once half of those that may
            send have.
        clients: how many may send; called when there is a choice whether to wait.
        finish: jobs that ask for more than features -> their answers, of which exceptions are raised to the one that
            asked; runs on the encoding thread.
        encoded: told of each batch: frames, seconds.
    """

    def __init__(
        self,
        scorer: Scorer,
        limits: RequestLimits,
        *,
        max_batch: int = 64,
        max_wait_ms: float = 2.0,
        clients: Callable[[], int] = lambda: 1,
        finish: Finish | None = None,
        encoded: Callable[[int, float], None] = lambda frames, seconds: None,
    ) -> None:
        if max_batch < 1 or max_wait_ms < 0:
            raise ValueError(f"Batcher: max_batch ≥ 1 and max_wait_ms ≥ 0; got {max_batch} and {max_wait_ms}.")
        self._scorer, self._limits, self._max_batch, self._wait_s = scorer, limits, max_batch, max_wait_ms / 1000
        self._clients, self._finish, self._encoded = clients, finish, encoded
        self._queues: OrderedDict[Hashable, deque[EncodingJob]] = OrderedDict()  # in order of whose turn it is
        self._changed = threading.Condition()
        self._closed = False
        self.queued = 0  # frames
        self._pixels = 0  # of them
        self._thread = threading.Thread(target=self._run, name="encoder", daemon=True)
        self._thread.start()

    async def submit(self, client: Hashable, frames: Sequence[np.ndarray], stream: Any = None) -> Any:
        """The features (N, D) float32 of frames; with a stream, what `finish` makes of them.

        Raises:
            RefusedError: too many frames wait already.
        """
        job = EncodingJob(client, frames, asyncio.get_running_loop().create_future(), stream)
        with self._changed:
            if self._closed:
                raise RefusedError("draining", "The server is stopping.", status=503, retry_after_s=5.0)
            frames_most, pixels_most = self._limits.queue_frames, self._limits.queue_pixels
            pixels = sum(map(_pixels, frames))
            if self.queued + len(frames) > frames_most or self._pixels + pixels > pixels_most:
                wanted = f"at most {frames_most} frames and {pixels_most} pixels waiting"
                raise RefusedError("busy", "Too many frames wait.", expected=wanted, status=503, retry_after_s=1.0)
            self.queued += len(frames)
            self._pixels += pixels
            self._queues.setdefault(client, deque()).append(job)
            self._changed.notify()
        return await job.future

    def close(self) -> None:
        """Finish what is queued, then end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    # On the encoding thread --------------------------------------------------------------------------

    @torch.inference_mode()
    def _run(self) -> None:
        while batch := self._next_batch():
            started = time.monotonic()
            self._encode(batch)
            self._encoded(len(batch), time.monotonic() - started)
            jobs = {id(job): job for job, _ in batch}.values()
            self._answer([job for job in jobs if len(job.features) == len(job.frames)])

    def _next_batch(self) -> list[tuple[EncodingJob, np.ndarray]]:
        """Frames of one size and whose they are; none once the batcher is closed and empty."""
        with self._changed:
            while True:
                while not self._queues and not self._closed:
                    self._changed.wait()
                if not self._queues:
                    return []
                oldest = min(queue[0].since_s for queue in self._queues.values())
                while not self._enough() and (left := oldest + self._wait_s - time.monotonic()) > 0:
                    self._changed.wait(left)
                if batch := self._select():  # none where nobody waits for what was queued any more
                    return batch

    def _enough(self) -> bool:
        return self._closed or self.queued >= self._max_batch or 2 * len(self._queues) >= self._clients()

    def _select(self) -> list[tuple[EncodingJob, np.ndarray]]:
        batch: list[tuple[EncodingJob, np.ndarray]] = []
        shape: tuple[int, ...] | None = None
        most = self._max_batch
        turns = deque(self._queues)
        while turns and len(batch) < most:
            client = turns.popleft()
            queue = self._queues[client]
            while queue and queue[0].future.done():  # nobody waits for it any more
                gone = queue.popleft()
                self.queued -= len(gone.frames) - gone.taken
                self._pixels -= sum(map(_pixels, gone.frames[gone.taken :]))
            if not queue:
                del self._queues[client]
                continue
            job = queue[0]
            frame = job.frames[job.taken]
            if shape is None:
                shape = frame.shape
                most = max(1, min(most, self._limits.batch_pixels // (shape[0] * shape[1])))
            if frame.shape != shape:
                continue  # it is the first in turn for the next batch, or comes before long
            batch.append((job, frame))
            job.taken += 1
            self.queued -= 1
            self._pixels -= _pixels(frame)
            if job.taken == len(job.frames):
                queue.popleft()
            if queue:
                self._queues.move_to_end(client)
                turns.append(client)
            else:
                del self._queues[client]
        return batch

    def _encode(self, batch: list[tuple[EncodingJob, np.ndarray]]) -> None:
        """Features to their jobs; where the batch fails, frame by frame, so that only the one at fault does."""
        try:
            features = scoring.encode(self._scorer, np.stack([frame for _, frame in batch]))
        except Exception as error:
            if len(batch) > 1:
                for one in batch:
                    self._encode([one])
            else:
                self._tell([(batch[0][0], error)])
            return
        for (job, _), row in zip(batch, features, strict=True):
            job.features.append(row)

    def _answer(self, jobs: list[EncodingJob]) -> None:
        answers: list[tuple[EncodingJob, Any]] = [(job, np.stack(job.features)) for job in jobs if job.stream is None]
        wanting = [job for job in jobs if job.stream is not None]
        if wanting and self._finish is not None:
            try:
                answers += zip(wanting, self._finish(wanting), strict=True)
            except Exception as error:
                answers += [(job, error) for job in wanting]
        self._tell(answers)

    def _tell(self, answers: list[tuple[EncodingJob, Any]]) -> None:
        """Wake the event loop once for all of them."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[EncodingJob, Any]]] = {}
        for job, answer in answers:
            by_loop.setdefault(job.future.get_loop(), []).append((job, answer))
        for loop, each in by_loop.items():
            if not loop.is_closed():
                loop.call_soon_threadsafe(_resolve, each)


def _pixels(frame: np.ndarray) -> int:
    return frame.shape[0] * frame.shape[1]


def _resolve(answers: list[tuple[EncodingJob, Any]]) -> None:
    for job, answer in answers:
        if job.future.done():  # its client has gone
            continue
        if isinstance(answer, Exception):
            job.future.set_exception(answer)
        else:
            job.future.set_result(answer)
