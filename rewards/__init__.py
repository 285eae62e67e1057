"""Frames in, numbers out: rewards from what a camera sees and what a person wants, useful without the rest.

    import torch
    from rewards.clip_goal import clip_scorer
    from rewards.encoders import OpenCLIPEncoder

    encoder = OpenCLIPEncoder("ViT-B-32:laion2b_s34b_b79k")
    scorer = clip_scorer(encoder=encoder, goal="the drawer is open", baseline="a robot arm at a desk")
    numbers = scorer.score(torch.from_numpy(frames))  # (T, H, W, 3) uint8 RGB -> (T,) float32

`rewards.core` has the nouns. A `Scorer` encodes each frame once; any number of heads read the features; `combine`
makes one potential of theirs; `shaping` makes it a reward. Every `*_scorer` function builds one from plain values.
"""
