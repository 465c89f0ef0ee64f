"""Tiny random models of many Hugging Face families, lively ones, and batches for them, written by hand."""

import importlib
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

PAD, START, VOCAB, LONGEST = 0, 2, 29, 24
LANGUAGE = 3  # mBART's first decoder id, and the last of its labels

_NAMED = {"vocab_size": VOCAB, "pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": None}
_PLAIN = {**_NAMED, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
_LLAMA = {**_PLAIN, "intermediate_size": 24, "num_key_value_heads": 1, "max_position_embeddings": LONGEST}
_GEMMA = {**_LLAMA, "head_dim": 8, "sliding_window": 4, "query_pre_attn_scalar": 8, "tie_word_embeddings": True}
_SCAN = {"mamba_n_groups": 1, "mamba_d_state": 8, "mamba_chunk_size": 4, "mamba_d_head": 8}
_SEQ2SEQ = {
    **_NAMED, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": LONGEST,
    "decoder_start_token_id": START, "forced_eos_token_id": None,
}  # fmt: skip
_T5 = {**_NAMED, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": PAD,
       "relative_attention_num_buckets": 6, "relative_attention_max_distance": 8}  # fmt: skip
_WHISPER = {**_SEQ2SEQ, "num_mel_bins": 6, "max_source_positions": 5, "max_target_positions": LONGEST,
            "suppress_tokens": None, "begin_suppress_tokens": None}  # fmt: skip
_BERT = {**_PLAIN, "intermediate_size": 24, "max_position_embeddings": LONGEST}


@dataclass(frozen=True)
class Family:
    """One tiny configuration.

    Args:
        config, model: names in transformers.
        settings: of the configuration.
        double: whether the same sums in another order agree in float64; some models go through float32 on their way.
        weights: seed, spread of what symbols are looked up as, and of what matrices give: with these free runs
            neither stand still nor forget their beginning.
    """

    config: str
    model: str
    settings: dict[str, Any] = field(default_factory=dict)
    double: bool = True
    weights: tuple[float, ...] = (0, 0.3, 2.2)

    def build(self, dtype: torch.dtype | None = None, **changes: Any) -> Any:
        """The model in evaluation mode, in the widest type it computes in, its weights shaken."""
        tf = importlib.import_module("transformers")
        settings = self.settings | changes
        if self.config == "EncoderDecoderConfig":
            parts = [tf.BertConfig(**_BERT), getattr(tf, settings.pop("decoder"))(**settings.pop("decoder_settings"))]
            config = tf.EncoderDecoderConfig.from_encoder_decoder_configs(*parts)
            for name, value in settings.items():
                setattr(config, name, value)
        else:
            config = getattr(tf, self.config)(**settings)
        torch.manual_seed(0)
        # explicit: transformers warns of nothing then, and dropout shows in training mode alone
        model = getattr(tf, self.model)(config=config).to(dtype or self.dtype).eval()
        shake(model, *self.weights)
        return model

    @property
    def dtype(self) -> torch.dtype:
        return torch.float64 if self.double else torch.float32

    def tolerance_of(self, dtype: torch.dtype) -> float:
        """Relative, of a loss: another order of the same sums."""
        return 1e-10 if dtype == torch.float64 and self.double else 1e-6

    def gradient_tolerance(self, dtype: torch.dtype) -> float:
        """Of a gradient, in units of the largest one."""
        if dtype == torch.float32:
            return 2e-5
        return 1e-10 if self.double else 1e-7


def _lm(
    name: str, settings: dict[str, Any], *weights: float, double: bool = True, model: str = "ForCausalLM"
) -> Family:
    return Family(name + ("TextConfig" if name == "Gemma3" else "Config"), name + model, settings, double, weights)


_GPT2 = {**_NAMED, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": LONGEST}
_BART = "ForConditionalGeneration"

CAUSAL: dict[str, Family] = {
    "gpt2": _lm("GPT2", _GPT2, 9, 0.3, 2.2, model="LMHeadModel"),
    "llama": _lm("Llama", _LLAMA, 3, 0.3, 2.2),
    "qwen3": _lm("Qwen3", {**_LLAMA, "head_dim": 8, "tie_word_embeddings": True}, 11, 0.3, 2.2),
    "mistral": _lm("Mistral", {**_LLAMA, "head_dim": 8, "sliding_window": 4}, 1, 0.3, 2.2),
    "gemma2": _lm("Gemma2", {**_GEMMA, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0}, 4, 0.1, 2.2,
                  double=False),
    "gemma3": _lm("Gemma3", _GEMMA, 2, 0.1, 2.2, double=False),
    "opt": _lm("OPT", {**_PLAIN, "ffn_dim": 24, "max_position_embeddings": LONGEST, "word_embed_proj_dim": 16},
               0, 0.3, 2.2),
    "bloom": _lm("Bloom", {**_NAMED, "hidden_size": 16, "n_layer": 2, "n_head": 2}, 8, 0.6, 1.8, double=False),
    "mamba": _lm("Mamba", {**_NAMED, "hidden_size": 16, "state_size": 4, "num_hidden_layers": 2}, 0, 0.3, 2.2,
                 double=False),
    "falcon_h1": _lm("FalconH1", {**_LLAMA, **_SCAN, "head_dim": 8, "mamba_d_ssm": 16, "mamba_n_heads": 2}, 8, 0.3, 2.2,
                     double=False),
    "lfm2": _lm("Lfm2", {**_LLAMA, "layer_types": ["conv", "full_attention"], "conv_L_cache": 3}, 10, 0.3, 2.2),
    # nobody named these
    "gpt_neox": _lm("GPTNeoX", {**_PLAIN, "intermediate_size": 24, "max_position_embeddings": LONGEST}, 9, 0.3, 2.2),
    "cohere": _lm("Cohere", {**_LLAMA, "logit_scale": 0.25}, 11, 0.3, 2.2, double=False),
    "granite": _lm("Granite", {**_LLAMA, "logits_scaling": 2.0, "embedding_multiplier": 3.0,
                               "residual_multiplier": 0.7, "attention_multiplier": 0.35}, 7, 0.3, 2.2),
}  # fmt: skip

_JOINED = {"pad_token_id": PAD, "decoder_start_token_id": START}

SEQ2SEQ: dict[str, Family] = {
    "t5": _lm("T5", _T5, 1, 0.6, 1.8, model=_BART),
    "bart": _lm("Bart", {**_SEQ2SEQ, "scale_embedding": True}, 21, 0.6, 1.8, model=_BART),
    "mbart": _lm("MBart", {**_SEQ2SEQ, "decoder_start_token_id": LANGUAGE}, 23, 0.6, 1.8, model=_BART),
    "marian": _lm("Marian", {**_SEQ2SEQ, "decoder_start_token_id": PAD}, 31, 0.6, 1.8, model="MTModel"),
    "whisper": _lm("Whisper", _WHISPER, 4, 0.3, 2.2, model=_BART),
    "bert2gpt2": _lm("EncoderDecoder", {"decoder": "GPT2Config", "decoder_settings": _GPT2, **_JOINED}, 1, 0.3, 2.2,
                     model="Model"),
    "bert2bert": _lm("EncoderDecoder", {"decoder": "BertConfig", "decoder_settings": _BERT, **_JOINED}, 34, 1.0, 1.2,
                     model="Model"),
    # nobody named this
    "m2m_100": _lm("M2M100", _SEQ2SEQ, 3, 0.3, 1.2, model=_BART),
}  # fmt: skip

FAMILIES = CAUSAL | SEQ2SEQ


def shake(model: nn.Module, seed: float, lookup: float, gain: float) -> None:
    """Weights large enough for every output to hang on every entry before it; norms, biases and heads among them."""
    g = torch.Generator().manual_seed(100 + int(seed))
    looked_up = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    tensors = [*model.named_parameters(), *((n, b) for n, b in model.named_buffers() if "logits_bias" in n)]
    with torch.no_grad():
        for name, weight in tensors:
            if not weight.requires_grad and "logits_bias" not in name:
                continue  # sines
            noise = torch.randn(weight.shape, generator=g, dtype=torch.float64)
            if id(weight) in looked_up:
                weight.copy_(lookup * noise)
            elif weight.dim() <= 1 or "norm" in name or "A_log" in name or "logits_bias" in name:
                weight.add_(0.3 * noise)
            else:
                across = 0.5 if any(part in name.lower() for part in ("encoder_attn", "crossatt", "encdec")) else 1.0
                weight.copy_(across * gain * noise / weight[0].numel() ** 0.5)


PROMPTS, COMPLETIONS = (3, 1, 4, 2), (5, 7, 2, 4)


def texts() -> list[Tensor]:
    """Four texts of 8, 8, 6 and 6 ids, prompt and completion; a pad and a begin symbol in them are ids like others."""
    g = torch.Generator().manual_seed(5)
    made = [torch.randint(4, VOCAB, (p + c,), generator=g) for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    made[0][4], made[1][3], made[3][0] = PAD, 1, PAD
    return made


def causal_inputs(padding: str = "right", labels: bool = True) -> dict[str, Tensor]:
    """What a collator makes of ``texts``: ids, mask, and labels with -100 outside the completion."""
    rows, time = texts(), max(p + c for p, c in zip(PROMPTS, COMPLETIONS, strict=True))
    ids = torch.full((len(rows), time), PAD)
    mask, targets = torch.zeros_like(ids), torch.full_like(ids, -100)
    for r, row in enumerate(rows):
        begin = 0 if padding == "right" else time - len(row)
        ids[r, begin : begin + len(row)], mask[r, begin : begin + len(row)] = row, 1
        targets[r, begin + PROMPTS[r] : begin + len(row)] = row[PROMPTS[r] :]
    return {"input_ids": ids, "attention_mask": mask, **({"labels": targets} if labels else {})}


LENGTHS = (7, 3, 5, 6)


def seq2seq_inputs(name: str, padding: str = "right") -> dict[str, Tensor]:
    """Sources (audio for Whisper) of differing lengths, and labels of ``LENGTHS`` with -100 after them."""
    g = torch.Generator().manual_seed(6)
    labels = torch.randint(4, VOCAB, (len(LENGTHS), max(LENGTHS)), generator=g)
    labels[2, 1], labels[3, 3] = 1, START
    if name not in ("mbart", "m2m_100"):  # these find a language, or a position, by counting what is no pad
        labels[0, 2] = PAD
    if name == "mbart":
        labels[torch.arange(len(LENGTHS)), torch.tensor(LENGTHS) - 1] = LANGUAGE
    labels[torch.arange(max(LENGTHS)) >= torch.tensor(LENGTHS)[:, None]] = -100
    if name == "whisper":
        features = torch.randn(len(LENGTHS), 6, 10, generator=g, dtype=torch.float64)
        return {"input_features": features, "labels": labels}
    source = torch.randint(4, VOCAB, (len(LENGTHS), 6), generator=g)
    mask = (torch.arange(6) < torch.tensor([[6], [2], [5], [3]])).long()
    if padding == "left":
        mask = mask.flip(1)
    return {"input_ids": source * mask, "attention_mask": mask, "labels": labels}


def collated(name: str, dtype: torch.dtype, padding: str = "right") -> dict[str, Tensor]:
    """What a collator makes for a family, its audio in the model's type."""
    made = causal_inputs(padding) if name in CAUSAL else seq2seq_inputs(name, padding)
    return {key: value.to(dtype) if value.is_floating_point() else value for key, value in made.items()}
