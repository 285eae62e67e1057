"""Keypoint affordance rewards: waypoints from the first frame, and progress along them."""

from rewards.keypoint.reward import KeypointProgress, keypoint_scorer

__all__ = ["KeypointProgress", "keypoint_scorer"]
