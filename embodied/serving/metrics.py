"""What the server counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class Metrics:
    """One server's counts, in a registry of its own.

    Args:
        model_id, version: of the server, as labels of `embodied_info`.
    """

    def __init__(self, model_id: str, version: str) -> None:
        self.registry = registry = CollectorRegistry()
        info = Gauge("embodied_info", "The model served", ["model_id", "version"], registry=registry)
        info.labels(model_id, version).set(1)
        self.requests = Counter("embodied_requests", "Requests answered", ["path", "status"], registry=registry)
        self.refused = Counter("embodied_refused", "Requests and messages refused", ["code"], registry=registry)
        self.seconds = Histogram(
            "embodied_request_seconds", "From arrival to answer", ["path"], buckets=SECONDS, registry=registry
        )
        self.frames = Counter("embodied_frames_encoded", "Frames encoded", registry=registry)
        self.batch = Histogram(
            "embodied_batch_frames", "Frames of a batch", buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256), registry=registry
        )
        self.encoding = Counter("embodied_encoding_seconds", "Time spent encoding", registry=registry)
        self.queued = Gauge("embodied_queue_frames", "Frames waiting to be encoded", registry=registry)
        self.sessions = Gauge("embodied_sessions", "Open sessions", registry=registry)

    def encoded(self, frames: int, seconds: float) -> None:
        """A batch was encoded."""
        self.frames.inc(frames)
        self.batch.observe(frames)
        self.encoding.inc(seconds)

    def text(self) -> bytes:
        """Prometheus' exposition format."""
        return generate_latest(self.registry)
