"""The reward server as several replicas behind one address, by Ray Serve: for when one machine is not enough.

Every replica has the model to itself and batches the frames of the clients it was given. Over HTTP any replica answers
any request, since nothing there has a memory. A WebSocket stays with the replica that accepted it until it closes, so
an episode's rows are always where its session is, and nothing has to be sticky; a client that comes back may come to
another replica, and begins a new episode there, as it would after a restart (`embodied.serving.client.RemoteStream`).

What is different behind Ray's proxy: limits, token and drain are the application's and hold in each replica; a slow
header or a silent connection meets the proxy's own patience, not ours; rates are counted by each replica for itself;
and /metrics is that of whichever replica answers, so scrape Ray's own for sums.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from embodied.errors import UserError

NAME = "embodied"
DEPLOYMENT = "reward"
PROXY_S = 120  # more that Ray's proxy has to come up


def start(build: Callable[[], Any], *, host: str, port: int, replicas: int, requests: int) -> str:
    """Start the replicas, on the cluster that RAY_ADDRESS names or a local one, and return once they answer.

    Args:
        build: makes the application (`embodied.serving.app.make_app`), in each replica; must be picklable.
        host, port: of Ray's proxy.
        replicas: how many; each takes a CPU, and its share of the cluster's GPUs.
        requests: that a replica has in hand at most, open sessions among them; beyond it they wait at the proxy.

    Returns:
        The address.

    Raises:
        UserError: Ray is not installed, or its cluster has fewer CPUs than replicas.
    """
    ray, serve = _ray()
    if not ray.is_initialized():
        ray.init(include_dashboard=False, configure_logging=False, log_to_driver=False)
    have = ray.cluster_resources()
    if have.get("CPU", 0) < replicas:
        stop()
        raise UserError(f"replicas must be at most {have.get('CPU', 0):g}, the CPUs of Ray's cluster; got {replicas}.")

    def application() -> Any:  # Ray takes a plain function alone for a builder
        return build()

    deployment = serve.deployment(
        serve.ingress(application)(_Replica),
        name=DEPLOYMENT,
        num_replicas=replicas,
        max_ongoing_requests=requests,  # Ray's 5 would leave nothing to batch, and each session counts
        ray_actor_options={"num_cpus": 1, "num_gpus": min(1.0, have.get("GPU", 0) / replicas)},
    )
    try:
        options = {"proxy_location": "HeadOnly", "http_options": {"host": host, "port": port}}
        try:
            serve.start(**options)
        except TimeoutError:  # on a busy machine the proxy takes longer than the minute that Ray waits for it
            serve.start(**options)  # finds the one that is coming up, and does not wait
            _wait_for_proxy(serve)
        serve.run(deployment.bind(), name=NAME, route_prefix="/")
    except (RuntimeError, TimeoutError, ray.exceptions.RayError) as error:
        stop()
        told = " ".join(str(error).split())
        raise UserError(f"the replicas did not start: {told} Why is in the logs of Ray's session.") from error
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _wait_for_proxy(serve: Any) -> None:
    """Raises: TimeoutError: it does not answer."""
    end = time.monotonic() + PROXY_S
    while set(serve.status().proxies.values()) != {"HEALTHY"}:
        if time.monotonic() > end:
            raise TimeoutError(f"Ray's proxy must answer within {PROXY_S} s; it does not.")
        time.sleep(0.2)


def wait() -> None:
    """Until SIGINT or SIGTERM; in the main thread."""
    over = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        over.set()

    before = {each: signal.signal(each, end) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        over.wait()
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def stop() -> None:
    """End the replicas, once they have finished what they have in hand, and the cluster where it is ours."""
    ray, serve = _ray()
    if ray.is_initialized():
        serve.shutdown()
        ray.shutdown()


class _Replica:
    """What Ray calls a deployment; all it does is done by the application around it."""


def _ray() -> tuple[Any, Any]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    os.environ.setdefault(
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60"
    )  # after its 5, a proxy on a busy machine is killed
    try:
        import ray  # pyright: ignore[reportMissingImports]
        from ray import serve  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError('replicas need Ray Serve: pip install "embodied-rewards[ray]".') from error
    return ray, serve
