"""Tiny backbones of each class, random weights, made without a network: folders as `save_pretrained` writes them."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from rewards.encoders.loading import import_transformers

MARKS = {
    "smolvlm": ["<|im_start|>", "<end_of_utterance>", "<fake_token_around_image>", "<global-img>", "<image>"],
    "qwen3_vl": ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"],
    "qwen2_5_vl": [
        "<|im_start|>",
        "<|im_end|>",
        "<|vision_start|>",
        "<|vision_end|>",
        "<|image_pad|>",
        "<|video_pad|>",
    ],
    "paligemma": ["<bos>", "<eos>", "<image>"],
}
SIZES = {"smolvlm": 32, "qwen3_vl": 64, "qwen2_5_vl": 56, "paligemma": 28}
CLASSES = ("smolvlm", "qwen3_vl", "paligemma")


def save_tiny_backbone(
    folder: Path, kind: str, *, width: int = 32, layers: int = 2, wide: int = 64, size: int = 32, patch: int = 8
) -> str:
    """Write a backbone of a class into a folder; returns its name.

    Args:
        folder: new.
        kind: one of `MARKS`.
        width, layers, wide: of its language model: hidden size, layers, MLP.
        size, patch: of SmolVLM's pictures.
    """
    transformers = import_transformers()
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    special = ["<pad>", *MARKS[kind]]
    vocabulary = {word: i for i, word in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    bytes_alone = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bytes_alone.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_alone.decoder = decoders.ByteLevel()
    bytes_alone.add_special_tokens(special)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=bytes_alone, pad_token="<pad>")
    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    text = {
        "vocab_size": len(vocabulary), "hidden_size": width, "intermediate_size": wide, "num_hidden_layers": layers,
        "num_attention_heads": 2 if width < 256 else 8, "num_key_value_heads": 1, **ids,
        "max_position_embeddings": 2048,
    }  # fmt: skip
    seen = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    images = {"image_token_id": vocabulary.get("<image>", vocabulary.get("<|image_pad|>"))}
    if kind == "smolvlm":
        vision = seen | {"num_hidden_layers": 2, "image_size": size, "patch_size": patch}
        config = transformers.SmolVLMConfig(
            text_config={"model_type": "llama", **text}, vision_config=vision, scale_factor=2, **images
        )
        network = transformers.SmolVLMForConditionalGeneration
    elif kind == "paligemma":
        vision = seen | {"num_hidden_layers": 2, "image_size": SIZES[kind], "patch_size": 14, "projection_dim": width}
        vision |= {"model_type": "siglip_vision_model", "vision_use_head": False}
        text |= {"model_type": "gemma", "head_dim": width // 2}
        config = transformers.PaliGemmaConfig(text_config=text, vision_config=vision, projection_dim=width, **images)
        network = transformers.PaliGemmaForConditionalGeneration
    else:
        sections = [width // 4 - 2 * (width // 16), width // 16, width // 16]
        text |= {"rope_parameters": {"rope_type": "default", "mrope_section": sections, "rope_theta": 10000.0},
                 "head_dim": width // 2}  # fmt: skip
        images |= {"video_token_id": vocabulary["<|video_pad|>"]}
        images |= {f"vision_{end}_token_id": vocabulary[f"<|vision_{end}|>"] for end in ("start", "end")}
        vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": width}
        if kind == "qwen3_vl":
            vision |= {"patch_size": 16, "deepstack_visual_indexes": [0], "num_position_embeddings": 16}
            config = transformers.Qwen3VLConfig(text_config=text, vision_config=vision, **images)
            network = transformers.Qwen3VLForConditionalGeneration
        else:
            vision |= {"patch_size": 14, "window_size": 56, "fullatt_block_indexes": [1]}
            config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **images)
            network = transformers.Qwen2_5_VLForConditionalGeneration
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = network(config)
    made.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    colours = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    (folder / "preprocessor_config.json").write_text(json.dumps(colours))
    return str(folder)
