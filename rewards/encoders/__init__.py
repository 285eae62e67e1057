"""Frozen image and text towers: any open_clip or transformers model, and the embedded encoder."""

from rewards.encoders.models import OpenCLIPEncoder, TransformersEncoder, embedded_encoder

__all__ = ["OpenCLIPEncoder", "TransformersEncoder", "embedded_encoder"]
