"""A reward on the frames of a film: python examples/reward_on_frames.py FILM "the drawer is open"."""

import sys

import av
import torch

from rewards.clip_goal import clip_scorer
from rewards.encoders import embedded_encoder  # OpenCLIPEncoder("ViT-B-32:laion2b_s34b_b79k") for other pictures

film, goal = sys.argv[1:3]
scorer = clip_scorer(encoder=embedded_encoder(), goal=goal)
with av.open(film) as container:
    frames = [torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
for number, potential in enumerate(scorer.score(torch.stack(frames))):
    print(f"frame {number}: {potential:.4f}")
