"""A reward elsewhere: the same numbers as here, whatever the network and the server do."""

from __future__ import annotations

import contextlib
import threading

import numpy as np
import pytest
import torch

from embodied.building.scorers import make_scorer
from embodied.config import compose
from embodied.errors import UserError
from embodied.scoring import Layout, Track, label
from embodied.serving import peer, protocol
from embodied.serving.client import RemoteStream
from embodied.serving.http_client import Client
from embodied.serving.limits import RequestLimits
from embodied.serving.peer import Address, ServerRefusedError, read_token
from embodied.serving.remote import RemoteEncoder, remote_scorer
from rewards.clip_goal import clip_scorer
from rewards.combine import WeightedSum
from rewards.compose import composed_scorer
from rewards.core import Features, Scorer
from rewards.keypoint.rule import KeypointShaping
from rewards.shaping import PotentialShaping
from tests.fakes import FakeEncoder
from tests.reward_server import serving
from tests.served_rewards import QUICK, SHAPING, clip, frames, to_goal


class Momentum:
    """Reads the past, a signal and two views."""

    name = "momentum"

    def score(self, features: Features) -> torch.Tensor:
        first, second = features.views["front"], features.views["side"]
        return (first * second).sum(-1).cumsum(1) + features.signals["speed"]


class Bright:
    """Reads the images."""

    name, frames_read = "bright", "all"

    def score(self, features: Features) -> torch.Tensor:
        return features.frames["main"].float().mean((2, 3, 4)) / 255 + features.depth["main"].mean((1, 2))[:, None]


class Broken:
    name, pointwise = "broken", True

    def score(self, features: Features) -> torch.Tensor:
        return torch.full(features.main.shape[:2], torch.nan)


def one(head, encoder=None) -> Scorer:
    return Scorer(encoder or FakeEncoder(), {head.name: head}, WeightedSum(), PotentialShaping())


@pytest.fixture(scope="module")
def server():
    with serving(clip(), goal_scorer=to_goal) as running:
        yield running


@pytest.fixture
def remote(server):
    scorer = remote_scorer(url=server.url, **QUICK)
    yield scorer
    scorer.encoder.client.close()


# The same numbers ---------------------------------------------------------------------------------------


def test_an_encoder_elsewhere_is_described_and_encodes_alike(remote):
    here = FakeEncoder()
    assert (remote.encoder.name, remote.encoder.dim, remote.encoder.image_size) == ("fake", 16, (8, 8))
    torch.testing.assert_close(remote.encode(frames(5)), here.encode_images(frames(5)), atol=1e-6, rtol=0)
    assert remote.encode(frames(0)).shape == (0, 16)
    torch.testing.assert_close(remote.encoder.encode_texts(["a", "b"]), here.encode_texts(["a", "b"]))


def test_potentials_and_rewards_are_those_of_the_servers_scorer(remote):
    ours = clip()
    assert (list(remote.heads), remote.pointwise, remote.frames_read) == (list(ours.heads), True, "none")
    assert remote.shaping == PotentialShaping(**{**SHAPING, "clip": [0.1, 1.9]})
    rows = [ours.encode(frames(n, n)).numpy() for n in (3, 7, 7)]
    episodes = [Track(list(each), [False] * (len(each) - 2) + [True]) for each in rows]
    for a, b in zip(label(remote, episodes, Layout()), label(ours, episodes, Layout()), strict=True):
        np.testing.assert_allclose(a.rewards, b.rewards, atol=1e-6)
        np.testing.assert_allclose(a.potentials["clip"], b.potentials["clip"], atol=1e-6)
    torch.testing.assert_close(remote.score(frames(4)), ours.score(frames(4)))


def test_heads_of_several_views_signals_and_the_past():
    ours = one(Momentum())
    rng = torch.Generator().manual_seed(0)
    views = {name: torch.randn(3, 6, 16, generator=rng) for name in ("front", "side")}
    features = Features(views=views, signals={"speed": torch.randn(3, 6, generator=rng)})
    limits = RequestLimits(body_bytes=1200)  # one episode in a request
    with serving(ours, limits=limits) as running:
        remote = remote_scorer(url=running.url, **QUICK)
        torch.testing.assert_close(remote.potentials(features), ours.potentials(features))
        terminated = torch.zeros(3, 5, dtype=torch.bool)
        torch.testing.assert_close(remote.rewards(features, terminated), ours.rewards(features, terminated))
        remote.encoder.client.close()


def test_heads_that_read_images_get_them():
    ours = one(Bright())
    seen = frames(8).view(2, 4, 8, 8, 3)
    features = Features(
        views={"main": torch.zeros(2, 4, 16)}, frames={"main": seen}, depth={"main": torch.ones(2, 8, 8)}
    )
    with serving(ours) as running:
        remote = remote_scorer(url=running.url, **QUICK)
        assert (remote.frames_read, remote.pointwise) == ("all", False)
        torch.testing.assert_close(remote.potentials(features), ours.potentials(features))
        remote.encoder.client.close()


def test_many_frames_travel_in_as_many_requests_as_the_limits_want():
    encoder = FakeEncoder()
    ours = clip_scorer(encoder=encoder, goal="open")
    limits = RequestLimits(message_frames=4, texts=2, body_bytes=700)  # 3 frames of 192 bytes
    with serving(ours, limits=limits) as running:
        remote = RemoteEncoder(running.url, **QUICK)
        torch.testing.assert_close(remote.encode_images(frames(11)), encoder.encode_images(frames(11)))
        texts = ["a", "b", "c", "d", "e"]
        torch.testing.assert_close(remote.encode_texts(texts), encoder.encode_texts(texts))
        remote.client.close()


def test_one_request_serves_all_heads_of_one_score(remote, monkeypatch):
    asked = []
    ask = Client.ask
    monkeypatch.setattr(Client, "ask", lambda self, *words: asked.append(words[1]) or ask(self, *words))
    features = Features(views={"main": remote.encode(frames(4))[None]})
    remote.rewards(features, torch.zeros(1, 3, dtype=torch.bool))
    assert asked == [protocol.ENCODE, protocol.POTENTIALS]
    remote.potentials(Features(views=features.views))  # other features are asked about anew
    assert asked[2:] == [protocol.POTENTIALS]


def test_another_goal_and_parts_of_another_shaping(server):
    remote = remote_scorer(url=server.url, goal="shut", shaping={"kind": None, "discount": 0.5, "clip": None}, **QUICK)
    ours = clip_scorer(encoder=FakeEncoder(), goal="shut")
    torch.testing.assert_close(remote.score(frames(3)), ours.score(frames(3)))
    assert remote.shaping == PotentialShaping(**SHAPING | {"discount": 0.5})
    remote.encoder.client.close()


def test_a_shaping_of_another_kind_comes_too():
    ours = Scorer(FakeEncoder(), clip().heads, WeightedSum(), KeypointShaping(kind="difference", dense=0.25))
    with serving(ours) as running:
        remote = remote_scorer(url=running.url, **QUICK)
        assert remote.shaping == ours.shaping
        remote.encoder.client.close()


def test_two_threads_share_a_client(remote):
    expected = FakeEncoder().encode_images(frames(6))
    made: list[torch.Tensor] = []
    threads = [threading.Thread(target=lambda: made.append(remote.encode(frames(6)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 4
    for each in made:
        torch.testing.assert_close(each, expected)


# From a config ------------------------------------------------------------------------------------------


def test_a_config_needs_no_encoder_of_its_own(server):
    config = compose("train", ["env=cartpole", "reward=remote", f"reward.url={server.url}", "encoder=open_clip"])
    scorer = make_scorer(config)  # whose weights are not at hand
    assert scorer is not None
    assert scorer.encoder.image_size == (8, 8)
    assert scorer.shaping == PotentialShaping(**SHAPING)
    scorer.encoder.client.close()


def test_beside_other_rewards_all_read_the_servers_features(server):
    words = ["env=cartpole", "reward=[clip,remote]", "reward.clip.goal=shut", f"reward.remote.url={server.url}"]
    with pytest.raises(UserError, match=f"own server, {server.url}.*add encoder=remote encoder.url={server.url}"):
        remote_scorer(url=server.url, encoder=FakeEncoder(), **QUICK)
    composed = make_scorer(compose("train", [*words, "encoder=remote", f"encoder.url={server.url}"]))
    parts = {"clip": clip_scorer(encoder=FakeEncoder(), goal="shut"), "remote": clip()}
    for each in parts.values():
        object.__setattr__(each, "encoder", parts["clip"].encoder)
    ours = composed_scorer(encoder=parts["clip"].encoder, parts=parts)
    torch.testing.assert_close(composed.score(frames(4)), ours.score(frames(4)))
    composed.encoder.client.close()


def test_what_the_server_has_not_is_refused_by_name(server):
    with serving(clip()) as running, pytest.raises(UserError, match="takes none; got 'shut'"):
        remote_scorer(url=running.url, goal="shut", **QUICK)
    with pytest.raises(UserError, match=r"at most 1000 characters; got 10000"):
        remote_scorer(url=server.url, goal="x" * 10_000, **QUICK)


def test_nan_elsewhere_is_nan_here():
    with serving(one(Broken())) as running:
        remote = remote_scorer(url=running.url, **QUICK)
        with pytest.raises(FloatingPointError, match="head 'broken' must give finite numbers"):
            remote.score(frames(2))
        with contextlib.closing(RemoteStream(running.url)) as stream:
            with pytest.raises(FloatingPointError, match="head 'broken'"):
                stream.push({"main": frames(1)[0].numpy()})
            assert stream.lost == 0
        remote.encoder.client.close()


# Where and who ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("url", "parts"), [
    ("http://here:8765", ("http", "here", 8765, "")),
    ("https://there/models/", ("https", "there", 443, "/models")),
    ("http://[::1]:5", ("http", "::1", 5, "")),
])  # fmt: skip
def test_addresses(url, parts):
    address = Address.parse(url)
    assert (address.scheme, address.host, address.port, address.path) == parts
    assert Address.parse(str(address)) == address


@pytest.mark.parametrize("url", ["here:8765", "ftp://here", "http://", "http://a:b", "", "http://h:8765?token=x"])
def test_other_addresses_are_refused(url):
    with pytest.raises(UserError, match="url must be http://HOST:PORT"):
        Address.parse(url)


def test_a_token_in_an_address_is_refused_and_not_repeated():
    with pytest.raises(UserError, match="EMBODIED_TOKEN or token_file") as error:
        Client("http://user:hunter2@here:8765")
    assert "hunter2" not in str(error.value)


def test_tokens_come_from_a_file_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("EMBODIED_TOKEN", raising=False)
    assert read_token() is None
    monkeypatch.setenv("EMBODIED_TOKEN", "from-env")
    (tmp_path / "token").write_text("from-file\n")
    assert read_token() == "from-env"
    assert read_token(token_file=tmp_path / "token") == "from-file"
    (tmp_path / "token").write_text("two words")
    with pytest.raises(UserError, match="one line of printable ASCII") as error:
        read_token(token_file=tmp_path / "token")
    assert "two words" not in str(error.value)
    with pytest.raises(UserError, match="token_file must be a file"):
        read_token(token_file=tmp_path / "none")


def test_a_wrong_token_is_said_at_once(tmp_path, monkeypatch):
    monkeypatch.delenv("EMBODIED_TOKEN", raising=False)
    with serving(clip(), token="s3cret-s3cret-s3cret") as running:
        for make in (lambda: Client(running.url).about(), lambda: RemoteStream(running.url)):
            monkeypatch.delenv("EMBODIED_TOKEN", raising=False)
            with pytest.raises(ServerRefusedError, match="Give its token"):
                make()
            monkeypatch.setenv("EMBODIED_TOKEN", "wrong")
            with pytest.raises(ServerRefusedError, match=r"Its token is another.*EMBODIED_TOKEN") as error:
                make()
            assert "wrong" not in str(error.value).replace("The token is wrong or missing", "")
        (tmp_path / "token").write_text("s3cret-s3cret-s3cret\n")
        client = Client(running.url, token_file=tmp_path / "token")
        assert client.about()["heads"] == ["clip"]
        client.close()
        RemoteStream(running.url, token_file=tmp_path / "token").close()


def test_another_version_is_refused_at_both_doors(server, monkeypatch):
    monkeypatch.setattr(peer, "own_version", lambda: "7.3.1")
    for make in (lambda: Client(server.url).about(), lambda: RemoteStream(server.url)):
        with pytest.raises(ServerRefusedError, match=r"must serve embodied-rewards 7\.3, as here; got .*same version"):
            make()
    monkeypatch.setattr(peer, "own_version", lambda: "0.1.99")  # mended, not changed
    peer.check_version("0.1.0", Address.parse(server.url))
