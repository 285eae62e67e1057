"""Pretrained bodies of each class: who sees whom, what their own code computes, what is learned and what is kept."""

import json
import shutil

import numpy as np
import pytest
import torch

from policies.vla import pretrained
from policies.vla.core import ChunkBatch, ChunkPolicy, Spec
from policies.vla.embedded import ChunkObservation
from policies.vla.families import patches
from policies.vla.imitation import ChunkImitation
from policies.vla.pictures import cropped, recoloured, resized
from policies.vla.pretrained import see_mask
from policies.vla.sources import Chosen, fetched
from policies.vla.stats import Normaliser
from policies.vla.tokens import BINS, binned, middles
from tests.tiny_vla import CLASSES, SIZES, save_tiny_backbone

CAMERAS, STATES, ACTIONS, HORIZON = ("front", "wrist"), ("x", "y"), ("dx", "dy", "open"), 2
KINDS = (*CLASSES, "qwen2_5_vl")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("backbones")
    return {kind: root / kind for kind in KINDS if save_tiny_backbone(root / kind, kind)}


def make(folder, *, head="l1", cameras=CAMERAS, states=STATES, seed=0, **options):
    torch.manual_seed(seed)
    options = {"rank": 2, "alpha": 1.0, "augment": False, "size": SIZES[folder.name], "train": "head"} | options
    spec = Spec(
        cameras=dict.fromkeys(cameras, 3), states=states, actions=ACTIONS, text=0, horizon=HORIZON, fps=20.0, head=head,
        backbone={"source": str(folder), **options},
    )  # fmt: skip
    rows = np.random.default_rng(0).normal(size=(50, 3))
    state = Normaliser.fit(rows[:, : len(states)], "mean_std", names=states)
    return ChunkPolicy(spec, state, Normaliser.fit(rows, "quantile", names=ACTIONS))


def observed(policy, count=2, seed=0):
    random, size = torch.Generator().manual_seed(seed), policy.fusion.chosen.size
    names = tuple(policy.spec.cameras)
    shown = {name: torch.randint(0, 256, (count, 3, size, size), generator=random, dtype=torch.uint8) for name in names}
    seen = {name: torch.ones(count, dtype=torch.bool) for name in names}
    said = policy.fusion.prompts(["Push the cube", "open the drawer now"][:count])
    return ChunkObservation(shown, seen, said, torch.randn(count, len(policy.spec.states), generator=random))


def batch(policy):
    chunk = torch.randn(2, HORIZON, 3, generator=torch.Generator().manual_seed(1)).clamp(-1, 1)
    return ChunkBatch(observed(policy), chunk, torch.zeros(2, HORIZON, dtype=torch.bool))


# Who sees whom -------------------------------------------------------------------------------------------


def moved_by_the_last_slot(policy):
    """What the last slot's change does to slot 0, and to what is given."""
    body = policy.eval().fusion
    with torch.no_grad():
        given = policy.look(observed(policy))
        slots = body.slots.expand(2, -1, -1).clone()
        read = []

        def whole(tokens, mask, place, about, cache=None, read_on=body._read):
            read.append(read_on(tokens, mask, place, about, cache))
            return read[-1]

        body._read = whole
        before = body.answer(given, slots)
        slots[:, -1] += 1
        after = body.answer(given, slots)
        del body._read
    length = given.tokens.shape[1]
    return float((after - before)[:, 0].abs().max()), float((read[1] - read[0])[:, :length].abs().max())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", CLASSES)
def test_the_last_slot_moves_the_first_and_nothing_that_is_given(folders, kind, attention, monkeypatch):
    policy = make(folders[kind], attention=attention)
    slot, given = moved_by_the_last_slot(policy)
    assert slot > 1e-4
    assert given == 0

    def causal(there, count, **how):
        return see_mask(there, count, **how).tril()

    monkeypatch.setattr(pretrained, "see_mask", causal)  # what is tested can fail: see above
    assert moved_by_the_last_slot(policy)[0] == 0


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", CLASSES)
def test_a_shorter_sentence_or_a_missing_camera_changes_nothing_else(folders, kind, attention):
    policy = make(folders[kind], attention=attention).eval()
    obs = observed(policy)
    together = policy.predict_chunk(obs)
    alone = ChunkObservation({k: v[:1] for k, v in obs.maps.items()}, {k: v[:1] for k, v in obs.seen.items()},
                        policy.fusion.prompts(["Push the cube"]), obs.state[:1])  # fmt: skip
    assert torch.allclose(policy.predict_chunk(alone), together[:1], atol=1e-5)  # it was padded beside the longer one
    obs.seen["wrist"][1] = False
    before = policy.predict_chunk(obs)
    assert not torch.allclose(before[1], together[1])
    obs.maps["wrist"].bitwise_not_()
    after = policy.predict_chunk(obs)
    assert torch.equal(before[1], after[1])
    assert not torch.allclose(before[0], after[0])


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_given_is_what_the_model_itself_computes(folders, kind):
    """The same hidden states as of transformers' own forward, from token numbers with places for the picture."""
    from transformers import AutoModel

    policy = make(folders[kind], cameras=("front",), states=()).eval()
    body, obs = policy.fusion, observed(policy, 1)
    mark = body.network.config.image_token_id
    with torch.no_grad():
        given = policy.look(obs)
        mask = see_mask(given.there, 0, prefix_causal=body.family.causal)
        ours = body._read(given.tokens, mask, given.place, given)
        picture = (obs.maps["front"].float() / 255 - body.mean) / body.std
        around = [body.prompts.before, body.prompts.opening, torch.full((int(given.pictures.sum()),), mark)]
        ids = torch.cat([*around, body.prompts.closing, obs.text[0]])[None]
        own = AutoModel.from_pretrained(folders[kind], attn_implementation="sdpa").eval()
        extra = {"pixel_values": picture[:, None] if kind == "smolvlm" else picture}
        if kind == "paligemma":
            extra["token_type_ids"] = torch.zeros_like(ids)
        if kind.startswith("qwen"):
            vision, side = own.config.vision_config, picture.shape[-1] // own.config.vision_config.patch_size
            extra = {"pixel_values": patches(picture, vision), "image_grid_thw": torch.tensor([[1, side, side]]),
                     "mm_token_type_ids": (ids == mark).int()}  # fmt: skip
        theirs = own(input_ids=ids, attention_mask=torch.ones_like(ids), **extra).last_hidden_state
    assert torch.allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("kind", ["qwen3_vl", "qwen2_5_vl"])
def test_pictures_are_cut_as_qwens_processor_cuts_them(folders, kind):
    import transformers

    from rewards.encoders.loading import cure_torchvision

    cure_torchvision()
    policy = make(folders[kind], cameras=("front",))
    shown = observed(policy, 2).maps["front"]
    vision = policy.fusion.network.config.vision_config
    processor = transformers.Qwen2VLImageProcessor(
        patch_size=vision.patch_size, merge_size=vision.spatial_merge_size, do_resize=False, image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )  # fmt: skip
    theirs = processor(list(shown), return_tensors="pt")["pixel_values"]
    ours = patches((shown.float() / 255 - 0.5) / 0.5, vision)
    assert torch.allclose(ours, theirs.view(ours.shape), atol=1e-5)


# What is learned -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "train"), [(k, t) for k in CLASSES for t in ("lora", "head", "full")])
def test_a_step_of_training_lowers_the_loss_and_moves_only_what_is_trained(folders, kind, train):
    policy = make(folders[kind], train=train, film=train == "lora")
    base = {name: value.clone() for name, value in policy.named_parameters() if not value.requires_grad}
    assert bool(base) == (train != "full")
    rows = batch(policy)
    learner = ChunkImitation(policy, np.ones(2), lambda _: rows, steps=4, batch_size=2, learning_rate=3e-3, warmup=1)
    first = float(policy.eval().loss(rows, torch.Generator()).mean().detach())
    before = {name: value.clone() for name, value in policy.learned().items()}
    for _ in range(4):
        learner.step()
    assert float(policy.eval().loss(rows, torch.Generator()).mean().detach()) < first
    assert all(torch.equal(value, dict(policy.named_parameters())[name]) for name, value in base.items())
    moved = {name for name, value in policy.learned().items() if not torch.equal(value, before[name])}
    assert any("lora_A" in name for name in moved) == (train == "lora")
    assert any("film" in name for name in moved) == (train == "lora")
    assert any(name.startswith("fusion.network") for name in moved) == (train != "head")
    acting = learner.averaged()
    shared = dict(acting.named_parameters())
    assert all(shared[name] is value for name, value in policy.named_parameters() if not value.requires_grad)


@pytest.mark.parametrize("kind", CLASSES)
def test_a_saved_policy_is_the_same_and_holds_what_was_trained(folders, kind, tmp_path):
    policy = make(folders[kind], train="lora", film=True)
    for value in policy.learned().values():
        value.data += 0.01 * torch.randn(value.shape)
    policy.save(tmp_path / "policy")
    again = ChunkPolicy.load(tmp_path / "policy")
    obs = observed(policy)
    assert (again.predict_chunk(obs) - policy.predict_chunk(obs)).abs().max() <= 1e-6
    about = json.loads((tmp_path / "policy" / "policy.json").read_text())["spec"]["backbone"]
    assert about["source"] == str(folders[kind])
    assert len(about["hash"]) == 64
    held = (tmp_path / "policy" / "policy.safetensors").stat().st_size
    assert held < 4.2 * sum(value.numel() for value in policy.learned().values()) + 20_000


def test_a_backbone_whose_files_have_changed_is_refused(folders, tmp_path):
    moved = tmp_path / "smolvlm"
    shutil.copytree(folders["smolvlm"], moved)
    make(moved).save(tmp_path / "policy")
    config = json.loads((moved / "config.json").read_text())
    (moved / "config.json").write_text(json.dumps(config | {"note": "another"}))
    with pytest.raises(ValueError, match="its files have changed"):
        ChunkPolicy.load(tmp_path / "policy")
    shutil.rmtree(moved)
    with pytest.raises(FileNotFoundError, match="hub id"):
        ChunkPolicy.load(tmp_path / "policy")


@pytest.mark.parametrize("kind", CLASSES)
def test_film_changes_nothing_at_first_and_follows_its_formula(folders, kind):
    """x ← (1 + γ)(x + Attn(LN x)) + β, then the MLP, in the first block."""
    alone = {"cameras": ("front",), "states": ()}
    bare, policy = make(folders[kind], **alone).eval(), make(folders[kind], film=True, **alone)
    policy.eval()
    obs = observed(policy)
    with torch.no_grad():
        assert torch.equal(policy.look(obs).tokens, bare.look(obs).tokens)
        family = policy.fusion.family
        block = pretrained.part(policy.fusion.network, family.blocks)[0]
        plain = pretrained.part(bare.fusion.network, family.blocks)[0]
        film = getattr(block.block, family.attention).film
        film.weight.normal_(std=0.1)
        film.bias.normal_(std=0.1)
        caught = {}
        first, second = ("norm1", "norm2") if family.attention == "attn" else ("layer_norm1", "layer_norm2")
        hooks = [
            block.register_forward_pre_hook(lambda _, args, options: caught.update(x=(*args, *options.values())[0]),
                                            with_kwargs=True),
            getattr(plain, family.attention).register_forward_hook(
                lambda _, args, out: caught.update(added=out[0] if isinstance(out, tuple) else out)),
            block.register_forward_hook(lambda _, args, out: caught.update(out=out)),
        ]  # fmt: skip
        policy.look(obs)
        bare.look(obs)
        for hook in hooks:
            hook.remove()
        x, added = caught["x"], caught["added"]
        said = policy.fusion.said.value
        gamma, beta = (said @ film.weight.T + film.bias).chunk(2, -1)
        middle = (x + added).reshape(2, -1, x.shape[-1]) * (1 + gamma[:, None]) + beta[:, None]
        middle = middle.reshape(x.shape)
        expected = middle + plain.mlp(getattr(plain, second)(middle))
    assert hasattr(plain, first)
    assert torch.allclose(caught["out"], expected, atol=1e-5)


def test_film_tells_blocks_of_the_sentence_alone(folders):
    policy = make(folders["smolvlm"], film=True).eval()
    obs = observed(policy)
    policy.look(obs)
    embed = policy.fusion.network.get_input_embeddings()
    expected = embed(obs.text[1][obs.text[1] >= 0]).mean(0)
    assert torch.allclose(policy.fusion.said.value[1], expected, atol=1e-6)
    assert policy.twin().fusion.said.value is None  # a copy has a place of its own


@pytest.mark.parametrize("kind", CLASSES)
def test_computing_activations_again_changes_no_gradient(folders, kind):
    grads = []
    for again in (False, True):
        policy = make(folders[kind], train="full", film=True, checkpointing=again).train()
        policy.loss(batch(policy), torch.Generator()).mean().backward()
        grads.append({name: value.grad for name, value in policy.learned().items() if value.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    assert any("film" in name for name in grads[0])
    assert all(torch.allclose(value, grads[1][name], atol=1e-6) for name, value in grads[0].items())


@pytest.mark.parametrize("train", ["lora", "full"])
def test_half_precision_keeps_what_is_learned_whole(folders, train):
    policy = make(folders["smolvlm"], train=train, precision="bf16")
    assert all(value.dtype == torch.float32 for value in policy.learned().values())
    frozen = {value.dtype for value in policy.parameters() if not value.requires_grad}
    assert frozen == ({torch.bfloat16} if train == "lora" else set())
    whole = make(folders["smolvlm"], train=train)
    obs = observed(policy)
    assert torch.allclose(policy.predict_chunk(obs), whole.predict_chunk(obs), atol=0.1)
    policy.train().loss(batch(policy), torch.Generator()).mean().backward()
    assert all(torch.isfinite(value.grad).all() for value in policy.learned().values() if value.grad is not None)


@pytest.mark.parametrize("head", ["flow", "diffusion"])
def test_other_heads_sit_on_a_backbone_too(folders, head):
    policy = make(folders["smolvlm"], head=head)
    policy.train().loss(batch(policy), torch.Generator().manual_seed(0)).mean().backward()
    assert policy.fusion.noisy.weight.grad.abs().max() > 0
    assert policy.predict_chunk(observed(policy)).shape == (2, HORIZON, 3)


# One after another ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CLASSES)
def test_words_said_one_by_one_are_those_of_the_whole_sequence(folders, kind):
    """With the cache, each token is the likeliest after those before it, as one causal pass over all says."""
    policy = make(folders[kind], head="tokens").eval()
    with torch.no_grad():
        given = policy.look(observed(policy))
        chunk = policy.decide(given)
        said = binned(chunk).flatten(1)
        begun = torch.cat([torch.full_like(said[:, :1], BINS), said[:, :-1]], 1)
        logits = policy.head.out(policy.fusion.answer(given, policy.head.words(begun), causal=True))
    assert torch.equal(logits.argmax(-1), said)
    error = torch.nn.functional.cross_entropy(logits.flatten(0, 1), said.flatten())
    pad = torch.zeros(2, HORIZON, dtype=torch.bool)
    found = policy.head.loss(policy.fusion, given, chunk, pad).mean().detach()
    assert float(found) == pytest.approx(float(error), abs=1e-5)


def test_bins_are_halves_of_a_bin_wide_of_the_truth():
    values = torch.linspace(-1, 1, 1001)
    assert (middles(binned(values)) - values).abs().max() <= 1 / BINS + 1e-6
    assert binned(torch.tensor([-3.0, 3.0])).tolist() == [0, BINS - 1]


# Pictures and words --------------------------------------------------------------------------------------


def test_marks_of_the_model_in_an_instruction_are_words(folders):
    prompts = make(folders["smolvlm"]).fusion.prompts
    plain, marked = prompts(["stop"])[0], prompts(["stop<end_of_utterance>"])[0]
    end = prompts._tokenizer.convert_tokens_to_ids("<end_of_utterance>")
    assert (plain == end).sum() == (marked == end).sum() == 1
    assert len(marked) > len(plain)


def test_pictures_are_resized_cropped_and_recoloured():
    frames = np.random.default_rng(0).integers(0, 256, (2, 20, 30, 3), dtype=np.uint8)
    assert resized(frames, 16).shape == (2, 3, 16, 16)
    square = np.ascontiguousarray(frames[:, :, :20])
    assert np.array_equal(resized(square, 20).permute(0, 2, 3, 1).numpy(), square)
    ramp = torch.linspace(0, 1, 40).expand(1, 3, 40, 40).contiguous()
    middle = cropped(ramp)
    assert middle[0, 0, 20, 0] == pytest.approx(0.5 - 0.5 * 0.9**0.5, abs=0.02)  # 90 % of the area
    drawn = [recoloured(cropped(ramp, random), random) for random in
             (torch.Generator().manual_seed(s) for s in (1, 1, 2))]  # fmt: skip
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.allclose(drawn[0], drawn[2])
    assert 0 <= drawn[2].min() <= drawn[2].max() <= 1


def test_training_augments_and_acting_does_not_draw(folders):
    policy = make(folders["smolvlm"], augment=True)
    rows = batch(policy)
    losses = [float(policy.train().loss(rows, torch.Generator().manual_seed(s)).mean().detach()) for s in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]
    assert torch.equal(policy.predict_chunk(rows.obs), policy.predict_chunk(rows.obs, torch.Generator()))


# What is refused -----------------------------------------------------------------------------------------


def test_what_is_no_backbone_is_refused(folders, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for source in ("somewhere", str(tmp_path), "./a/b"):
        with pytest.raises(FileNotFoundError, match=r"hub id \(OWNER/NAME\), or a folder"):
            fetched(source)
    with pytest.raises(FileNotFoundError, match="is not here and cannot be downloaded"):
        fetched("Nobody/Nothing")
    other = tmp_path / "smolvlm"
    shutil.copytree(folders["smolvlm"], other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    with pytest.raises(ValueError, match="is llama, which reads no pictures"):
        make(other)
    (other / "config.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        make(other)
    (other / "config.json").write_text(json.dumps(config))
    (other / "model.safetensors").rename(other / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match="safetensors"):
        make(other)
    with pytest.raises(ValueError, match="size must be a multiple of 16"):
        make(folders["smolvlm"], size=40)
    with pytest.raises(ValueError, match="train must be one of"):
        Chosen(source="x", train="qlora")
    with pytest.raises(ValueError, match="head must be one of"):
        make(folders["smolvlm"], head="word")


def test_weights_that_are_missing_are_not_made_up(folders, tmp_path):
    from safetensors.torch import load_file, save_file

    other = tmp_path / "smolvlm"
    shutil.copytree(folders["smolvlm"], other)
    tensors = load_file(other / "model.safetensors")
    tensors.pop(next(name for name in tensors if "layers.1.mlp" in name))
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks weights"):
        make(other)


def test_lora_without_its_package_says_what_to_install(folders, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(ModuleNotFoundError, match=r"embodied-rewards\[vla\]"):
        make(folders["smolvlm"], train="lora")
