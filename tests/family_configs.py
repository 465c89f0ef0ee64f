"""A tiny configuration for any class of transformers, by rules over the names of its fields."""

import copy
import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import transformers
from transformers import PreTrainedConfig

VOCAB, LONGEST, WIDTH, HEADS, WIDE = 48, 64, 32, 2, 24
ORDINARY = range(4, 29)
"""Ids without a meaning to any configuration; those with one are 0 to 3 and from ``VOCAB - 1`` down."""

_HEAD = WIDTH // HEADS
_RULES: tuple[tuple[str, int | None], ...] = (
    (r".*(rope|nope)_head_dim|.*rotary_dim", _HEAD // 2),
    (r"type_vocab_size|task_type_vocab_size", 2),
    (r".*vocab(_size)?(_per_layer_input|_base)?|.*n_tokens|.*vocab_size_.*|.*_vocab_size", VOCAB),
    (r"num_(key_value|kv)_heads|.*num_(key_value|kv)_heads|num_query_groups|multi_query_group_num", 1),
    (r".*(qk_|kv_|index_|linear_|mamba_|attention_|swa_|global_|cross_)?head_dim|.*d_head|.*dim_head|.*d_kv", _HEAD),
    (r".*lora_(rank|dim)|.*_rank|.*low_rank_dim", 8),
    (r".*mamba_n_heads|mamba_num_heads|n_mamba_heads", 2 * HEADS),
    (r".*(num_)?(attention|n|num|decoder_attention|encoder_attention|index_n|query)?_?heads|n_head|.*_num_heads|.*n_heads"
     r"|.*attention_heads|.*num_heads(_.*)?|.*num_(key|value)_heads", HEADS),
    (r"(moe_)?(num_)?(n_)?(routed_|local_)?experts|.*num_experts|.*n_routed_experts|.*num_local_experts", 4),
    (r"index_topk", LONGEST),
    (r".*experts_per_tok(en)?|.*top_?k(_experts)?|moe_k|.*num_activated_experts", 2),
    (r"n_group|topk_group|num_expert_groups?|.*n_shared_experts|.*num_shared_experts|first_k_dense_replace", 1),
    (r".*(num_)?hidden_layers|.*n_layers?|.*num_layers|.*_layers|.*depth|num_(encoder|decoder)_(blocks|layers)", 2),
    (r".*intermediate_(size|dim)|.*ffn?_dim|.*ffn_hidden_size|.*d_ff|.*inter_dim|n_inner|.*d_inner|.*mlp_dim"
     r"|.*ffn_size", WIDE),
    (r".*position_embeddings|n_positions|n_ctx|.*max_(source|target)_positions|max_seq_len|.*max_position.*"
     r"|context_length|seq_length", LONGEST),
    (r".*hidden_(sizes?|dim|channels)|d_model|n_embd|.*_dim|.*embed(ding)?_(dim|size)|.*hidden_size_.*|dim|.*_width"
     r"|.*d_model|.*output_size|.*projection_size|.*emb_dim|.*embedding_size|.*n_state", WIDTH),
    (r".*(state_size|d_state)", 8),
    (r"(mamba_|ssm_)?chunk_size|attention_chunk_size", 4),
    (r".*_ssm", 4 * _HEAD),
    (r"output_channels|base_channels|nemo_conv_channels|.*conv_channel_size|conv_kernel_dim|dim_ff", WIDTH),
    (r"num_embeddings", WIDTH),
    (r".*sliding_window(_size)?|attention_window_size|local_attention_window|attention_window", 4),
    (r"num_filters", 2),
    (r".*image_size|.*img_size", 16),
    (r".*(?<!temporal_)patch_size", 8),
)  # fmt: skip
"""The first one that a field's whole name matches gives its value."""

_IDS = {
    "pad": 0,
    "bos": 1,
    "eos": None,
    "decoder_start": 2,
    "sep": 3,
    "cls": 1,
    "mask": 3,
    "unk": 3,
    "forced_eos": None,
    "forced_bos": None,
}

_COMPOSED = {
    "EncoderDecoderConfig": ("BertConfig", "BertConfig"),
    "SpeechEncoderDecoderConfig": ("Wav2Vec2Config", "GPT2Config"),
    "VisionEncoderDecoderConfig": ("ViTConfig", "GPT2Config"),
}
_SECTIONS = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [3, 3, 2]}}
SPECIAL: dict[str, dict[str, Any]] = {
    "GraniteMoeHybridConfig": {"layer_types": ["mamba", "attention"], "mamba_n_heads": 4},
    "HrmTextConfig": {"num_layers_per_stack": None},
    "Idefics2PerceiverConfig": {"resampler_n_latents": 3, "resampler_n_heads": HEADS, "num_key_value_heads": 1},
    "InternVLVisionConfig": {"patch_size": (4, 4)},
    "QianfanOCRVisionConfig": {"patch_size": (4, 4)},
    "VipLlavaConfig": {"vision_feature_layers": [-2, -2, -2, -2, -2]},
    "MllamaTextConfig": {"cross_attention_layers": [1]},
    "MllamaVisionConfig": {"intermediate_layers_indices": [0, 1], "vision_output_dim": 3 * WIDTH},
    "Llama4VisionConfig": {"intermediate_size": 4 * WIDTH},
    "PixtralVisionConfig": {"patch_size": 4},
    "Gemma3Config": {"mm_tokens_per_image": 4},
    "AriaConfig": {"projector_patch_to_query_dict": {4: 2}},
    "Blip2Config": {"image_token_index": 40, "num_query_tokens": 3},
    "InstructBlipConfig": {"image_token_index": 40, "num_query_tokens": 3},
    "NllbMoeConfig": {"encoder_sparse_step": 2, "decoder_sparse_step": 2},
    "MoonshineConfig": {"encoder_num_key_value_heads": HEADS, "decoder_num_key_value_heads": HEADS},
    "XLMConfig": {"causal": True},
    "xLSTMConfig": {"hidden_size": 128, "embedding_dim": None, "num_blocks": None},
    "RecurrentGemmaConfig": {"num_hidden_layers": 3},
    "NemotronHConfig": {"n_groups": 2},
    "XmodConfig": {"default_language": "en_XX"},
    "JambaConfig": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "DiffLlamaConfig": {"num_key_value_heads": 2},
    "GPTNeoConfig": {"attention_types": [[["global", "local"], 1]], "num_layers": 2, "window_size": 4},
    "CodeGenConfig": {"n_head": 4, "rotary_dim": 4},
    "BambaConfig": {"attn_layer_indices": [1]},
    "ReformerConfig": {"axial_pos_embds_dim": (16, 16), "axial_pos_shape": (8, 8)},
    "Lfm2MoeConfig": {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2, "num_dense_layers": 1},
    "Mamba2Config": {"num_heads": 2 * HEADS, "n_groups": 2},
    "ZambaConfig": {
        "attention_hidden_size": 2 * WIDTH,
        "attention_head_dim": WIDTH,
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
        "num_hidden_layers": 4,
    },
    "ZayaConfig": {"num_experts_per_tok": 1},
    "ChameleonConfig": {"vocabulary_map": {"<image>": 40}},
    "Emu3Config": {"vocabulary_map": {"<|extra_200|>": 40, "<image>": 41}},
    "DbrxAttentionConfig": {"rope_theta": 1e4, "clip_qkv": 8.0},
    "FunAsrNanoAdaptorConfig": {"intermediate_size": WIDTH // 4},
    "MoonshineStreamingConfig": {"num_key_value_heads": HEADS},
    "MimiConfig": {"upsample_groups": WIDTH},
    "Molmo2AdapterConfig": {"vision_feature_layer": [-1]},
    "DiffusionGemmaTextConfig": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": WIDE},
    "Qwen4ExpTextConfig": {
        "indexer_budget": 4,
        "indexer_compress_ratio": 2,
        "indexer_n_heads": HEADS,
        "indexer_kv_heads": 1,
        "indexer_head_dim": _HEAD,
    },
    "Glm5NextTextConfig": {"index_kpool": 2},
    "DeepseekOcr2TextConfig": {"mlp_layer_types": ["dense", "sparse"]},
    "Granite4VisionConfig": {"deepstack_layer_map": [(0, 0)]},
    **dict.fromkeys(
        (
            "Ernie4_5_VLMoeTextConfig",
            "Glm4vTextConfig",
            "GlmOcrTextConfig",
            "PaddleOCRTextConfig",
            "Qwen2VLTextConfig",
            "Qwen2_5_VLTextConfig",
            "HunYuanVLTextConfig",
            "Qwen2_5OmniTextConfig",
            "Qwen3OmniMoeTextConfig",
        ),
        _SECTIONS,
    ),
    "Qwen2_5OmniThinkerConfig": {"vision_start_token_id": 30, "vision_end_token_id": 31},
    "Qwen3OmniMoeThinkerConfig": {"vision_start_token_id": 30, "vision_end_token_id": 31},
    "Step3p7TextConfig": {"sliding_window": 4},
    "LongcatFlashConfig": {"head_dim": _HEAD // 2},
    "RadioConfig": {"video_temporal_patch_size": 2},
    "Glm4vMoeTextConfig": {
        "rope_parameters": {**_SECTIONS["rope_parameters"], "mrope_section": [2, 1, 1], "partial_rotary_factor": 0.5}
    },
    "CohereCompassTextConfig": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
}
"""Where the rules fail: by the configuration's class."""


def tiny(kind: type[Any], **changes: Any) -> Any:
    """A configuration of a class, every part of it tiny."""
    if kind.__name__ in _COMPOSED:
        encoder, decoder = (getattr(transformers, name) for name in _COMPOSED[kind.__name__])
        made = kind.from_encoder_decoder_configs(tiny(encoder, is_decoder=False), tiny(decoder))
        made.pad_token_id, made.decoder_start_token_id = _IDS["pad"], _IDS["decoder_start"]
        return made
    taken = iter(range(VOCAB - 1, ORDINARY.stop - 1, -1))
    return _tiny(kind, taken, {}, changes)


def _tiny(kind: type[Any], taken: Iterator[int], ids: dict[str, int], changes: dict[str, Any]) -> Any:
    default = _default(kind)
    settings: dict[str, Any] = {}
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for name, field in fields.items():
        value = _value(default, name)
        if isinstance(value, PreTrainedConfig):
            settings[name] = _tiny(type(value), taken, ids, {})
        elif name.startswith("_") or name in _ALONE:
            continue
        elif name.endswith(("token_id", "token_index", "_id", "_tokens", "token_ids")) and "num" not in name:
            settings |= _identified(name, value, field, taken, ids)
        elif name in ("rope_parameters", "rope_scaling") or isinstance(value, bool | str | float | dict):
            continue
        elif isinstance(value, list | tuple) and value and all(type(v) is int and v > WIDTH for v in value):
            settings[name] = type(value)(_number(name, v) for v in value)
        elif isinstance(value, int) or (value is None and "int" in str(field.type) and re.fullmatch(_SET, name)):
            settings[name] = _number(name, value)
    settings |= _layers(default, fields, settings)
    if default.is_heterogeneous:
        settings["per_layer_config"] = None
    for heads, shared in (("num_attention_heads", "num_key_value_heads"), ("attention_heads", "kv_heads")):
        if settings.get(shared) and _value(default, heads) == _value(default, shared):
            settings[shared] = settings[heads]
    settings |= _ropes(default, settings)
    if "is_decoder" in fields and not default.is_encoder_decoder:
        settings["is_decoder"] = True
    settings |= SPECIAL.get(kind.__name__, {}) | {k: v for k, v in changes.items() if k in fields}
    made = kind(**settings)
    if made.is_encoder_decoder and getattr(made, "decoder_start_token_id", None) is None:
        made.decoder_start_token_id = _IDS["decoder_start"]
    return made


_ALONE = {"num_labels", "chunk_size_feed_forward", "seed", "unk_index", "pad_index", "bos_index", "eos_index"}
_SET = (
    r"head_dim|num_key_value_heads|n_inner|word_embed_proj_dim|ffn_dim|intermediate_size"
    r"|n_(routed|shared)_experts|num_experts_per_tok"
)
"""Fields whose default is None and that are given a number all the same."""


def _default(kind: type[Any]) -> Any:
    return kind()


def _value(config: Any, name: str) -> Any:
    """A field's value, also where it may differ between layers."""
    return config._getattr_without_heterogeneous_validation(name, None)


def _identified(name: str, value: Any, field: Any, taken: Iterator[int], ids: dict[str, int]) -> dict[str, Any]:
    """Ids of special symbols: the same name is the same id in every part."""
    short = name.removesuffix("_token_id")
    if short in _IDS and not (_IDS[short] is None and "None" not in str(field.type)):
        return {name: _IDS[short]}
    if isinstance(value, int) and value >= 0 and not isinstance(value, bool):
        if name not in ids:
            ids[name] = next(taken)
        return {name: ids[name]}
    return {}


def _layers(default: Any, fields: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Lists with an entry for each layer keep one layer of every kind."""
    made: dict[str, Any] = {}
    named = [name for name in fields if re.fullmatch(r"num_hidden_layers|n_layers?|num_layers", name)]
    for name in [name for name in named if isinstance(_value(default, name), int)]:
        count = _value(default, name)
        lists = {n: v for n in fields if isinstance(v := _value(default, n), list | tuple) and len(v) == count > 0}
        columns = list(zip(*lists.values(), strict=True)) if lists else []
        kept = sorted({repr(column): i for i, column in reversed(list(enumerate(columns)))}.values())[:4]
        if not lists:
            continue
        if len(kept) == 1:
            kept = [0, count - 1]
        made |= {n: [_number(n, float(v[i]) if any(type(w) is float for w in v) else v[i]) for i in kept]
                 for n, v in lists.items() if v} | {name: len(kept)}  # fmt: skip
    return made


def _number(name: str, value: Any) -> Any:
    """What the rules make of a field's number."""
    if value == 0:  # off
        return value
    if (isinstance(value, int) and not isinstance(value, bool)) or value is None:
        return next((to for pattern, to in _RULES if re.fullmatch(pattern, name)), value)
    return value


def _ropes(default: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """Sections of a rotation add up to half a head."""
    made: dict[str, Any] = {}
    for name in ("rope_parameters", "rope_scaling"):
        rope = copy.deepcopy(getattr(default, name, None))
        for inner in [rope, *rope.values()] if isinstance(rope, dict) else []:
            if isinstance(inner, dict) and "mrope_section" in inner:
                half = int((settings.get("head_dim") or _HEAD) * inner.get("partial_rotary_factor", 1.0)) // 2
                inner["mrope_section"] = [half - 2 * (half // 4), half // 4, half // 4]
                made[name] = rope
    return made


def classes() -> dict[str, tuple[str, type[Any]]]:
    """Every class of the mappings, by name: the mapping and the configuration."""
    from transformers.models.auto import modeling_auto as auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    found: dict[str, tuple[str, type[Any]]] = {}
    for mapping in MAPPINGS:
        for model_type, names in getattr(auto, f"MODEL_FOR_{mapping}_MAPPING_NAMES").items():
            for name in (names,) if isinstance(names, str) else names:
                kind = getattr(getattr(transformers, name), "config_class", None) or CONFIG_MAPPING[model_type]
                found.setdefault(name, (mapping, kind))
    return found


MAPPINGS = ("CAUSAL_LM", "SEQ_TO_SEQ_CAUSAL_LM", "SPEECH_SEQ_2_SEQ", "IMAGE_TEXT_TO_TEXT")


def model_of(name: str, config: Any) -> Any:
    return getattr(transformers, name)(config)
