"""Alignment learns what sentences mean from graded truth, resumes to the same weights, and leaves nothing behind."""

import numpy as np
import pytest
import torch

from rewards.encoders.alignment import AlignmentRecipe, Examples, align
from rewards.encoders.towers import Towers
from rewards.metrics import auroc, spearman

SENTENCES = ("the square is red", "the square is bright")


def squares(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Frames (N, 32, 32, 3) of one colour, and how red and how bright they are, (N, 2) in [0, 1]."""
    degrees = np.random.default_rng(seed).random((count, 2)).astype(np.float32)
    colour = np.stack([degrees[:, 0], 1 - degrees[:, 0], np.zeros(count)], -1) * (0.3 + 0.7 * degrees[:, 1:])
    return np.broadcast_to((255 * colour).astype(np.uint8)[:, None, None], (count, 32, 32, 3)).copy(), degrees


def examples(degrees: np.ndarray, frames: np.ndarray) -> Examples:
    return Examples(frames=frames, degrees=degrees, worlds=np.zeros(len(frames), int), fact_worlds=np.zeros(2, int))


def trained(tiny_clip: str, data: Examples, recipe: AlignmentRecipe, **options) -> Towers:
    towers = Towers(tiny_clip, device="cpu")
    align(
        towers.model, towers.preprocess, towers.tokenize, data, lambda fact, rng: (SENTENCES[fact], False), recipe,
        device=towers.device, **options,
    )  # fmt: skip
    return towers


def similarity(towers: Towers, frames: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        images = towers.model.encode_image(towers.preprocess(torch.from_numpy(frames)), normalize=True)
        return (images @ towers.model.encode_text(towers.tokenize(SENTENCES), normalize=True).T).numpy()


RECIPE = AlignmentRecipe(epochs=4, batch_size=16, lr=2e-3, max_shift_px=1)


def test_what_is_unknown_counts_for_nothing(tiny_clip):
    frames, degrees = squares(320, seed=0)
    degrees[::2, 0] = np.nan
    degrees[:, 1] = np.nan
    towers = trained(tiny_clip, examples(degrees, frames), RECIPE)
    held, truth = squares(200, seed=1)
    assert spearman(similarity(towers, held)[:, 0], truth[:, 0]) > 0.8


def test_shrunk_frames_are_what_the_tower_sees(tiny_clip):
    towers = Towers(tiny_clip, device="cpu")
    frames = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 70, 100, 3), np.uint8))
    small = towers.shrink(frames)
    assert small.shape == (2, *towers.image_size, 3)
    torch.testing.assert_close(towers.preprocess(small), towers.preprocess(frames))


def test_sentences_come_to_rank_frames_by_their_truth(tiny_clip):
    frames, degrees = squares(320, seed=0)
    towers = trained(tiny_clip, examples(degrees, frames), RECIPE)
    unseen, truth = squares(100, seed=1)
    scores = similarity(towers, unseen)
    assert not towers.model.training
    for fact in (0, 1):
        assert spearman(scores[:, fact], truth[:, fact]) > 0.8
        assert auroc(scores[:, fact], truth[:, fact] > 0.5) > 0.9


def test_shuffled_truth_teaches_nothing(tiny_clip):
    frames, degrees = squares(320, seed=0)
    shuffled = np.random.default_rng(3).permutation(degrees)
    scores = similarity(trained(tiny_clip, examples(shuffled, frames), RECIPE), squares(100, seed=1)[0])
    truth = squares(100, seed=1)[1]
    assert max(spearman(scores[:, fact], truth[:, fact]) for fact in (0, 1)) < 0.7


def test_resume_gives_the_same_weights(tiny_clip):
    frames, degrees = squares(64, seed=0)
    data, states = examples(degrees, frames), []
    recipe = AlignmentRecipe(epochs=2, batch_size=16)
    keep = lambda epoch, state: states.append({key: _clone(value) for key, value in state.items()})  # noqa: E731
    straight = trained(tiny_clip, data, recipe, on_epoch=keep)
    resumed = trained(tiny_clip, data, recipe, resume=states[0])
    for name, value in straight.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], value, rtol=0, atol=0)


def _clone(value):
    import copy

    return copy.deepcopy(value)


def test_saved_towers_run_as_an_encoder(tiny_clip, tmp_path):
    from rewards.encoders import OpenCLIPEncoder

    frames, _ = squares(3, seed=0)
    towers = Towers(tiny_clip, device="cpu")
    towers.model.eval()
    towers.save(tmp_path / "saved")
    encoder = OpenCLIPEncoder(f"local-dir:{tmp_path / 'saved'}", precision="fp32", device="cpu")
    with torch.no_grad():
        expected = towers.model.encode_image(towers.preprocess(torch.from_numpy(frames)), normalize=True)
    cosine = (encoder.encode_images(torch.from_numpy(frames)) * expected).sum(-1)
    assert cosine.min() > 0.999  # half precision on disk


def test_a_diverging_loss_is_an_error(tiny_clip):
    frames, degrees = squares(32, seed=0)
    with pytest.raises(FloatingPointError, match="loss must stay finite"):
        trained(tiny_clip, examples(degrees + np.inf, frames), AlignmentRecipe(epochs=1, batch_size=16))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_half_precision_is_where_the_hardware_has_it(tiny_clip, monkeypatch, precision):
    """Emulated, it takes many times as long as float32."""
    monkeypatch.setattr("rewards.encoders.alignment.fast_precision", lambda device: precision)
    seen = []

    def watched(module, inputs):
        seen.append(torch.is_autocast_enabled("cpu"))

    hook = torch.nn.modules.module.register_module_forward_pre_hook(watched)
    try:
        frames, degrees = squares(16, seed=0)
        trained(tiny_clip, examples(degrees, frames), AlignmentRecipe(epochs=1, batch_size=16, max_shift_px=1))
    finally:
        hook.remove()
    assert any(seen) == (precision == "bf16")


def test_a_difference_keeps_what_changed_of_a_model_and_the_words_that_count(tiny_clip, tmp_path):
    from rewards.encoders.difference import add_difference, save_difference

    base, changed = (Towers(tiny_clip, device="cpu").model for _ in range(2))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in changed.named_parameters():
            if not name.startswith("visual.conv1"):
                value += 0.05 * torch.randn(value.shape, generator=generator)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    save_difference(tmp_path / "part", before, changed.state_dict(), torch.tensor([5, 3, 5]))
    add_difference(base, tmp_path / "part")
    for name, value in base.state_dict().items():
        wanted = changed.state_dict()[name]
        if name == "token_embedding.weight":
            wanted = before[name].clone()
            wanted[[3, 5]] = changed.state_dict()[name][[3, 5]]
        torch.testing.assert_close(value, wanted, rtol=0, atol=1e-3)
    size = sum(value.numel() for value in before.values()) * 2
    assert (tmp_path / "part").stat().st_size < 0.6 * size
    with pytest.raises(ValueError, match="must have the tensors of base"):
        save_difference(tmp_path / "other", {"a": torch.zeros(1)}, {"b": torch.zeros(1)}, torch.tensor([0]))


def test_frozen_weights_stay_as_they_are(tiny_clip):
    frames, degrees = squares(32, seed=0)
    towers = Towers(tiny_clip, device="cpu", frozen=["token_embedding"])
    before = {name: value.clone() for name, value in towers.model.state_dict().items()}
    recipe = AlignmentRecipe(epochs=1, batch_size=16)
    draw = lambda fact, rng: (SENTENCES[fact], False)  # noqa: E731
    align(
        towers.model, towers.preprocess, towers.tokenize, examples(degrees, frames), draw, recipe,
        device=towers.device,
    )  # fmt: skip
    same = {
        name for name, value in towers.model.state_dict().items() if name in before and torch.equal(value, before[name])
    }
    assert "token_embedding.weight" in same
    assert "positional_embedding" not in same


def test_texts_are_taught_to_an_image_tower_that_stays(tiny_clip):
    frames, degrees = squares(320, seed=0)
    towers = Towers(tiny_clip, device="cpu", frozen=["visual."])
    before = {name: value.clone() for name, value in towers.model.state_dict().items()}
    draw = lambda fact, rng: (SENTENCES[fact], False)  # noqa: E731
    align(
        towers.model, towers.preprocess, towers.tokenize, examples(degrees, frames), draw, RECIPE, device=towers.device
    )
    state = towers.model.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in state.items() if name.startswith("visual."))
    held, truth = squares(64, seed=1)
    assert spearman(similarity(towers, held)[:, 0], truth[:, 0]) > 0.8
