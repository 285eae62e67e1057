"""Real transformers image-text models of random weights, made without a network: Qwen2-VL and Qwen3-VL, tiny."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from rewards.encoders.loading import cure_torchvision

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"]
SPECIAL += ["<|image_pad|>", "<|video_pad|>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for p in m.content %}{% if p.type == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ p.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def save_tiny_vlm(folder: Path) -> str:
    """Write model, processor (one token a byte) and chat template into a folder; returns its name."""
    cure_torchvision()
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    bytes_alone = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bytes_alone.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_alone.decoder = decoders.ByteLevel()
    bytes_alone.add_special_tokens(SPECIAL)
    ends = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=bytes_alone, **ends)
    processor = transformers.Qwen2VLProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(min_pixels=28 * 28, max_pixels=56 * 56),
        tokenizer=tokenizer,
        video_processor=transformers.Qwen2VLVideoProcessor(),
        chat_template=TEMPLATE,
    )
    config = transformers.Qwen2VLConfig(
        text_config={
            "vocab_size": len(vocabulary),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 2048,
            "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
            "bos_token_id": 0,
            "eos_token_id": 2,
            "pad_token_id": 0,
        },
        vision_config={
            "depth": 1,
            "embed_dim": 32,
            "hidden_size": 32,
            "num_heads": 2,
            "mlp_ratio": 2,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
        **{f"{name}_token_id": vocabulary[f"<|{name}|>"] for name in ("vision_start", "vision_end")},
        **{f"{name}_token_id": vocabulary[f"<|{name}_pad|>"] for name in ("image", "video")},
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = transformers.Qwen2VLForConditionalGeneration(config)
    network.generation_config.eos_token_id, network.generation_config.pad_token_id = 2, 0
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


# Qwen3-VL's template, without tools; what its images are called is asked for by Robometer.
TEMPLATE_3 = (
    "{% set seen = namespace(images=0, videos=0) %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}{% if p.type == 'image' %}"
    "{% set seen.images = seen.images + 1 %}{% if add_vision_id %}Picture {{ seen.images }}: {% endif %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% elif p.type == 'video' %}{% set seen.videos = seen.videos + 1 %}"
    "{% if add_vision_id %}Video {{ seen.videos }}: {% endif %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ p.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = (" True", " False")  # that are one token each, as in Qwen's vocabulary
THOUGHTS = ("<think>", "</think>")  # marks that are not called special


def tiny_qwen3_processor() -> Any:
    """One token a byte, but for `WORDS` and marks; images and films of at most 64 x 64 pixels a frame."""
    cure_torchvision()
    import transformers
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = [*SPECIAL, *THOUGHTS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        made = word.replace(" ", "\u0120")
        for end in range(1, len(made)):
            merges.append((made[:end], made[end]))
            letters.append(made[: end + 1])
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(letters))}
    words = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    words.add_special_tokens(SPECIAL)
    words.add_tokens([AddedToken(mark, special=False) for mark in THOUGHTS])
    size = {"shortest_edge": 32 * 32, "longest_edge": 64 * 64}
    return transformers.Qwen3VLProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(
            patch_size=16, size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3
        ),
        tokenizer=transformers.PreTrainedTokenizerFast(
            tokenizer_object=words, eos_token="<|im_end|>", pad_token="<|endoftext|>"
        ),
        video_processor=transformers.Qwen3VLVideoProcessor(
            size={"shortest_edge": 2 * 32 * 32, "longest_edge": 16 * 64 * 64}
        ),
        chat_template=TEMPLATE_3,
    )


def tiny_qwen3_config(vocabulary: int, processor: Any) -> Any:
    """Two layers of language, two of sight, all features of the real ones (deepstack, interleaved rotations)."""
    import transformers

    ids = processor.tokenizer.convert_tokens_to_ids
    return transformers.Qwen3VLConfig(
        text_config={
            "vocab_size": vocabulary,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "max_position_embeddings": 8192,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2], "mrope_interleaved": True,
            },
            "eos_token_id": 2,
            "pad_token_id": 0,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "out_hidden_size": 32,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1],
        },
        tie_word_embeddings=True,
        **{f"{name}_token_id": ids(f"<|{name}|>") for name in ("vision_start", "vision_end")},
        **{f"{name}_token_id": ids(f"<|{name}_pad|>") for name in ("image", "video")},
    )  # fmt: skip


def save_tiny_qwen3_vlm(folder: Path) -> str:
    """Write a Qwen3-VL and its processor into a folder; returns its name."""
    processor = tiny_qwen3_processor()
    import transformers

    config = tiny_qwen3_config(len(processor.tokenizer), processor)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = transformers.Qwen3VLForConditionalGeneration(config)
    network.generation_config.eos_token_id, network.generation_config.pad_token_id = 2, 0
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def save_tiny_robometer(folder: Path, *, layout: str, bins: int = 10, tokens: bool = True) -> str:
    """Write a Robometer of random weights as its authors or LeRobot lay it out; returns the folder's name.

    The processor, as the real one, knows nothing of the five tokens: beside the authors' weights, or in
    `folder / "base"` for LeRobot's.
    """
    from safetensors.torch import save_file

    processor = tiny_qwen3_processor()
    import transformers

    config = tiny_qwen3_config(len(processor.tokenizer) + 5, processor)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = transformers.Qwen3VLModel(config)
        outputs = {"progress": bins, "success": 1, "preference": 1}
        heads = {
            f"{name}_head": torch.nn.Sequential(
                torch.nn.Linear(32, 16), torch.nn.LayerNorm(16), torch.nn.GELU(), torch.nn.Dropout(0.1),
                torch.nn.Linear(16, count),
            )
            for name, count in outputs.items()
        }  # fmt: skip
    prefix = "model.model." if layout == "lerobot" else "model."
    state = {prefix + name: value for name, value in network.state_dict().items()}
    for name, head in heads.items():
        state |= {f"{name}.{key}": value for key, value in head.state_dict().items()}
    state["frame_pool_attn.weight"] = torch.zeros(1, 32)
    kind = "discrete" if bins > 1 else "l2"
    said: dict[str, Any] = {"use_per_frame_progress_token": tokens, "base_model_id": "nobody/nothing"}
    folder.mkdir(parents=True, exist_ok=True)
    if layout == "lerobot":
        state["model.lm_head.weight"] = state["model.model.language_model.embed_tokens.weight"].clone()
        said |= {"type": "robometer", "vlm_config": config.to_dict(), "max_frames": 4}
        said |= {"progress_loss_type": kind, "progress_discrete_bins": bins}
        (folder / "config.json").write_text(json.dumps(said))
        processor.save_pretrained(folder / "base")
    else:
        (folder / "config.json").write_text(json.dumps(config.to_dict()))
        lines = [
            "model: !!python/object:robometer.configs.experiment_configs.ModelConfig",
            *(f"  {name}: {json.dumps(value)}" for name, value in said.items()),
            f"loss: {{progress_loss_type: {kind}, progress_discrete_bins: {bins}}}",
            "data: {max_frames: 4}",
        ]
        (folder / "config.yaml").write_text("\n".join(lines))
        processor.save_pretrained(folder / "processor")
        for file in (folder / "processor").iterdir():
            file.rename(folder / file.name)
        (folder / "processor").rmdir()
    save_file({name: value.contiguous() for name, value in state.items()}, folder / "model.safetensors")
    return str(folder)


def save_tiny_rewind(folder: Path, *, tokens: bool, bins: int) -> tuple[str, str, str]:
    """Write a ReWiND of random weights, a DINOv2 and a BERT into three folders; returns their names."""
    cure_torchvision()
    import transformers
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers

    letters = {word: i for i, word in enumerate(["[PAD]", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    words = Tokenizer(models.BPE(vocab=letters, merges=[]))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    places = [folder / name for name in ("rewind", "dino", "bert")]
    with torch.random.fork_rng():
        torch.manual_seed(2)
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        dino = transformers.Dinov2Model(
            transformers.Dinov2Config(**sizes, mlp_ratio=2, image_size=28, patch_size=14, layerscale_value=1.0)
        )
        bert = transformers.BertModel(
            transformers.BertConfig(**sizes | {"hidden_size": 12}, intermediate_size=24, vocab_size=len(letters))
        )
        layer = torch.nn.TransformerEncoderLayer(16, 2, 64, batch_first=True)
        parts: dict[str, torch.nn.Module] = {
            "video_proj": torch.nn.Linear(16, 16),
            "text_proj": torch.nn.Linear(12, 16),
            "transformer": torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False),
        }
        for name, count in {"progress": bins, "success": 1, "preference": 1}.items():
            parts[f"{name}_head"] = torch.nn.Sequential(
                torch.nn.Linear(16, 8), torch.nn.LayerNorm(8), torch.nn.GELU(), torch.nn.Dropout(0.1),
                torch.nn.Linear(8, count),
            )  # fmt: skip
        state = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}
        state |= {f"first_embedding_{side}": torch.randn(1, 1, 16) for side in "AB"}
        state["preference_token"] = torch.randn(1, 1, 16)
        if tokens:
            state["text_position_embedding"] = torch.randn(1, 1, 16)
            state |= {f"prog_token_{side}": torch.randn(1, 6, 16) for side in "AB"}
    dino.save_pretrained(places[1])
    transformers.BitImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28}, do_convert_rgb=True
    ).save_pretrained(places[1])
    bert.save_pretrained(places[2])
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", model_max_length=512
    ).save_pretrained(places[2])
    places[0].mkdir()
    settings = {
        "video_feature_dim": 16, "text_feature_dim": 12, "hidden_dim": 16, "num_layers": 2, "num_attention_heads": 2,
        "max_len": 6, "causal_mask": True, "use_per_frame_progress_token": tokens,
    }  # fmt: skip
    (places[0] / "config.json").write_text(json.dumps({"model_type": "rewind_transformer"}))
    lines = [
        "model:", "  base_model_id: rewind_transformer",
        "  rewind: !!python/object:robometer.models.rewind_transformer.ReWINDTransformerConfig",
        *(f"    {name}: {json.dumps(value)}" for name, value in settings.items()),
    ]  # fmt: skip
    (places[0] / "config.yaml").write_text("\n".join(lines))
    save_file({name: value.contiguous() for name, value in state.items()}, places[0] / "model.safetensors")
    return str(places[0]), str(places[1]), str(places[2])
