"""An encoder and heads whose right answers are known."""

import torch

from tests.probes import SIZE


class ProbeEncoder:
    """A fixed random projection of the frame's bytes, unit length; counts how many frames it has seen.

    With `spell`, the features are the frame's first pixel instead: the numbers that `ProbeWorld` spells.
    """

    name, dim, image_size = "probe", 8, (SIZE, SIZE)

    def __init__(self, spell=False):
        self.spell = spell
        self.weights = torch.randn(SIZE * SIZE * 3, self.dim, generator=torch.Generator().manual_seed(0))
        self.weights[:3] *= 30  # the spelled numbers matter most
        self.frames, self.batches = 0, []

    def encode_images(self, frames):
        self.frames += len(frames)
        self.batches.append(len(frames))
        if self.spell:
            return torch.nn.functional.pad(frames[:, 0, 0].float(), (0, self.dim - 3))
        out = (frames.reshape(len(frames), -1).float() / 255 - 0.5) @ self.weights
        return torch.nn.functional.normalize(out, dim=-1)

    def encode_texts(self, texts):
        raise NotImplementedError


class ProbeHead:
    """A dot product with a fixed direction."""

    name, pointwise = "probe", True

    def __init__(self, seed=1):
        self.direction = torch.randn(8, generator=torch.Generator().manual_seed(seed))

    def score(self, features):
        return features.main @ self.direction


class ShadeHead:
    """A head that remembers: the running mean of the episode so far, so a wrong window gives wrong numbers."""

    name = "shade"

    def score(self, features):
        first = features.main[..., 0]
        return first.cumsum(1) / torch.arange(1, first.shape[1] + 1)


class RunningHead:
    """A head that remembers and goes on: the sum of the steps of the episode so far; counts the rows it was shown."""

    name, advances = "running", True

    def __init__(self):
        self.rows = 0

    def advance(self, features, memory=None):
        self.rows += features.main.shape[0] * features.main.shape[1]
        total = features.main[..., 2].cumsum(1) + (0.0 if memory is None else memory)
        return total, total[:, -1:]

    def score(self, features):
        return self.advance(features)[0]


class SpellHead:
    """100 · episode + 10 · world + step, read off spelled features, or a constant."""

    name, constant, pointwise = "spell", None, True

    def score(self, features):
        episode, world, step = features.main[..., :3].unbind(-1)
        spelled = 100 * episode + 10 * world + step
        return spelled if self.constant is None else torch.full_like(spelled, self.constant)


class TwoEyedHead:
    """Reads both views and a signal; each with a weight of its own, so that a mix-up gives other numbers."""

    name = "two eyed"

    def score(self, features):
        left, right = (features.views[name] for name in ("left", "right"))
        return left[..., 1] + 3 * right[..., 2] + 0.1 * features.signals["x"] - 0.2 * features.signals["clock"]


class ImageHead:
    """Brightness of the right images: of the first alone, less that camera's depth, or of each step's own."""

    name = "image"

    def __init__(self, frames_read):
        self.frames_read = frames_read

    def score(self, features):
        bright = features.frames["right"].float().mean((2, 3, 4)) / 255  # (B, N)
        distance = features.depth["right"].mean((1, 2))[:, None]
        return (bright - distance).expand(-1, features.main.shape[1]) + features.main[..., 0]
