"""Serve a reward model or a policy to other computers: HTTP and WebSocket, many clients in one batch.

Its clients are cameras that are watched elsewhere, policies in training (reward=remote), and whatever can send a
picture. Every request bears a token: the one in token_file or in the variable EMBODIED_TOKEN, never on the command
line. Where you give none, the server makes one at each start, in a file that only you can read and that your other
programs on this machine find by themselves. token=false serves every user of this machine without a token.

The server listens to this machine alone, with host=0.0.0.0 to others too. Before the open network put a TLS proxy
(proxies=[ITS ADDRESS]). GET /docs tells what goes over the wire. Ctrl-C or SIGTERM finishes what is queued and ends.

    embodied serve encoder=open_clip goal="the cup is upright"
    embodied serve reward=process reward.model=runs/fit/process host=0.0.0.0 token_file=token.txt
    embodied watch source=0 server=http://127.0.0.1:8765
    embodied serve policy=runs/finetune/20260101-120000-desk-place-solved-s0 port=8766     # action chunks to a robot
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import shlex
import socket
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from embodied import runs, scoring
from embodied.building import scorers
from embodied.building.goals import parts_of, takes_goal
from embodied.config import given_in
from embodied.datasets.encoding import fingerprint
from embodied.errors import UserError
from embodied.serving import protocol, tokens
from embodied.serving.app import make_app
from embodied.serving.connections import Server
from embodied.serving.limits import RequestLimits
from embodied.serving.peer import is_loopback, read_token
from embodied.serving.policy_app import PolicyService, make_policy_app, policy_id
from embodied.settings import check_device, check_least
from embodied.watching.live_scoring import toward
from rewards.core import Scorer


def run(config: DictConfig) -> None:
    """Serve until a signal comes."""
    token = _check(config)
    options: dict[str, Any] = {"limits": _limits(config), "token": token}
    options |= {"max_batch": config.max_batch, "max_wait_ms": float(config.max_wait_ms)}
    with ExitStack() as stack:
        with _listen(config.host, config.port) as listener:  # before the model is loaded: the port may be taken
            port = listener.getsockname()[1]
            bearer = None if token is None else f"${protocol.TOKEN_VARIABLE}"
            if token is None and config.token:
                options["token"], file = stack.enter_context(tokens.made(tokens.SERVE, port))
                bearer = f"$(cat {shlex.quote(str(file))})"
            if config.replicas == 1:
                if config.policy is not None:
                    app = policy_served(config, limits=options["limits"], token=options["token"])
                    _say_policy(app.state.service.describe(), config, port)
                else:
                    app = served(config, **options)
                    told = app.state.service.describe()
                    _say(f"model {told['model_id']}, encoder {told['encoder']['name']}", config, port, bearer)
                proxies = [str(each) for each in config.proxies or ()]
                Server(app, host=config.host, port=port, proxies=proxies).run(sockets=[listener])
        if config.replicas > 1:
            _serve_replicas(config, port, options, bearer)
    print("Stopped.")


def _serve_replicas(config: DictConfig, port: int, options: dict[str, Any], bearer: str | None) -> None:
    """Several servers behind Ray Serve's proxy."""
    from embodied.serving import ray_app  # an extra

    limits = options["limits"]
    requests = limits.sessions + limits.connections
    try:
        build = partial(served, config, **options)
        ray_app.start(build, host=config.host, port=port, replicas=config.replicas, requests=requests)
        _say(f"{config.replicas} replicas", config, port, bearer)
        ray_app.wait()
    finally:
        ray_app.stop()


def served(config: DictConfig, **options: Any) -> Any:
    """The application that a config describes, its model loaded and warm; `options` of `make_app`."""
    torch.set_num_threads(config.threads)
    scorer = scorers.make_scorer(config)
    assert scorer is not None  # _check
    scorer.check_causal("serve")
    scoring.encode(scorer, np.zeros((1, *scorer.encoder.image_size, 3), np.uint8))
    reward: Any = OmegaConf.to_container(config.reward, resolve=True)
    goal_scorer = partial(_with_goal, scorer, reward) if _has_goal(reward) else None
    return make_app(scorer, model_id=_model_id(scorer, reward), goal_scorer=goal_scorer, **options)


def policy_served(config: DictConfig, *, limits: RequestLimits, token: str | None) -> Any:
    """The application of a fine-tuned policy, loaded."""
    from embodied.finetuning import inputs, trying  # of the extra train, which serving rewards does without
    from embodied.finetuning.training import POLICY

    torch.set_num_threads(config.threads)
    folder = runs.find(str(config.policy), runs.ROOT / "finetune")
    runs.verb_of(folder, "finetune")
    policy, trained, execute = trying.load(folder, config.device, trust=config.trust)
    see, say = inputs.senses(policy, trained.encoder)
    saved = folder / json.loads((folder / "run.json").read_text("utf-8"))["policy"] / POLICY
    service = PolicyService(
        policy, see, say, execute=execute, model_id=policy_id(saved), limits=limits, token=token
    )  # fmt: skip
    return make_policy_app(service)


def _check(config: DictConfig) -> str | None:
    """The token, if one is given.

    Raises:
        UserError: settings that cannot be served.
    """
    if config.policy is not None:
        for key in ("reward", "encoder", "max_batch", "max_wait_ms"):
            if given_in(config, key):
                raise UserError(f"{key} is of reward models; a policy is served with its run's own. Drop {key}.")
        check_device(config.device)
        if config.replicas > 1:
            raise UserError("replicas are of reward models; a policy is served by one server. Drop replicas.")
    elif config.reward.get("_target_") is None:
        raise UserError("reward=true serves nothing: it is the task's own. Choose a reward model.")
    check_least(config, max_batch=1, max_wait_ms=0, threads=1, replicas=1, port=0)
    if config.port > 65535:
        raise UserError(f"port must be at most 65535; got {config.port}.")
    if isinstance(config.proxies, str):
        raise UserError(f"proxies must be a list; got {config.proxies}. Write proxies=[{config.proxies}].")
    for proxy in config.proxies or ():
        _check_proxy(str(proxy))
    if config.proxies and config.replicas > 1:
        raise UserError("proxies is of one server; with replicas Ray's own proxy tells the clients. Drop proxies.")
    if not config.token:
        if config.token_file is not None:
            raise UserError(f"token=false takes no token, and token_file={config.token_file} gives one. Drop either.")
        if not is_loopback(config.host):
            raise UserError(
                f"host={config.host} can be reached from other machines, so it needs a token. Drop token=false."
            )
        return None
    return read_token(token_file=config.token_file)


def _check_proxy(address: str) -> None:
    try:
        ipaddress.ip_network(address)
    except ValueError as error:
        raise UserError(f"proxies must be addresses of proxies, such as 10.0.0.2; got {address!r}.") from error


def _limits(config: DictConfig) -> RequestLimits:
    given: Any = OmegaConf.to_container(config.limits, resolve=True)
    try:
        return RequestLimits(**{name: type(getattr(RequestLimits, name))(value) for name, value in given.items()})
    except ValueError as error:
        raise UserError(str(error).replace("RequestLimits: ", "limits.")) from error


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=256)
    except OSError as error:
        raise UserError(
            f"cannot listen on {host} port {port}: {error.strerror or error}. Try another host=… or port=…."
        ) from error


def _has_goal(reward: dict[str, Any]) -> bool:
    return any(takes_goal(part) for part in parts_of(reward).values())


def _with_goal(scorer: Scorer, reward: dict[str, Any], goal: str) -> Scorer:
    return toward(scorer, reward, goal)[0]


def _model_id(scorer: Scorer, reward: dict[str, Any]) -> str:
    """The reward's name and a hash of its settings, its fitted weights and its encoder."""
    found = hashlib.sha256(json.dumps(reward, sort_keys=True, default=str).encode())
    found.update(fingerprint(scorer.encoder).encode())
    for part in (reward, *(reward.get("parts") or {}).values()):
        fitted = Path(str(part.get("model") or ""))
        for file in sorted(fitted.rglob("*")) if part.get("model") and fitted.is_dir() else []:
            found.update(file.read_bytes() if file.is_file() else b"")
    return f"{scorers.reward_name(reward)}-{found.hexdigest()[:12]}"


def _say_policy(told: dict[str, Any], config: DictConfig, port: int) -> None:
    """Where it listens, and how a robot asks."""
    url = f"http://{f'[{config.host}]' if ':' in config.host else config.host}:{port}"
    print(
        f"Serving {config.policy} at {url} ({told['model_id']}, {told['horizon']} actions at {told['fps']:g} a second)."
    )
    print(f"  embodied.serving.policy_client.RemotePolicy({url!r}, instruction=…)")
    print("Ctrl-C stops it.", flush=True)


def _say(what: str, config: DictConfig, port: int, bearer: str | None) -> None:
    """Where it listens, and how to ask; `bearer` is what a shell reads the token by."""
    url = f"http://{f'[{config.host}]' if ':' in config.host else config.host}:{port}"
    token = "" if bearer is None else f' -H "Authorization: Bearer {bearer}"'
    print(f"Serving {scorers.reward_name(config.reward)} at {url} ({what}).")
    print(f"  curl{token} -H 'Content-Type: image/jpeg' --data-binary @photo.jpg {url}{protocol.SCORE}")
    print(f"  embodied watch source=0 server={url}")
    print("Ctrl-C stops it.", flush=True)
