"""Tiny tokenizers, models and records, made here: nothing is fetched."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

WORDS = ["a man", "the dog", "two cats", "a tall woman", "the child", "some birds"]
ACTS = ["runs", "sees a cat", "sleeps", "eats bread", "walks home"]
TURNED = {"a": "ein", "the": "der", "two": "zwei", "some": "viele", "sees": "sieht", "runs": "rennt", "eats": "isst"}

CHAT = (
    "{% for message in messages %}<turn>{{ message.role }}\n{{ message.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>assistant\n{% endif %}"
)
MARKED = (
    "{% for message in messages %}<turn>{{ message.role }}\n{% if message.role == 'assistant' %}"
    "{% generation %}{{ message.content }}</s>{% endgeneration %}{% else %}{{ message.content }}</s>{% endif %}"
    "{{ '\n' }}{% endfor %}{% if add_generation_prompt %}<turn>assistant\n{% endif %}"
)
"""The same, with a mark around what the assistant says."""


def sentences() -> list[tuple[str, str]]:
    plain = [f"{who} {does}." for who in WORDS for does in ACTS]
    return [(text, " ".join(TURNED.get(word, word) for word in text.split())) for text in plain]


def tokenizer(pad: bool = True, chat: str | None = None) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<pad>", "</s>", "<s>", "<turn>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    made.train_from_iterator([text for pair in sentences() for text in pair], trainer)
    found = PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="</s>", bos_token="<s>", additional_special_tokens=["<turn>"],
        **({"pad_token": "<pad>"} if pad else {}),
    )  # fmt: skip
    if chat is not None:
        found.chat_template = chat
    return found


_BART = {"layers": 1, "attention_heads": 2, "ffn_dim": 32}


def config(family: str, vocab: int, **changes: Any) -> Any:
    from transformers import BartConfig, GPT2Config, LlamaConfig, T5Config

    ends = {"vocab_size": vocab, "pad_token_id": 0, "eos_token_id": 1}
    if family == "t5":
        sizes = {"d_model": 32, "d_kv": 16, "d_ff": 32, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
        return T5Config(**{**ends, **sizes, **changes})
    if family == "bart":
        sides = {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in _BART.items()}
        sizes = {"d_model": 32, "max_position_embeddings": 96, "decoder_start_token_id": 2, "bos_token_id": 2}
        return BartConfig(**{**ends, **sides, **sizes, "forced_eos_token_id": None, **changes})
    if family == "gpt2":
        sizes = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 96, "bos_token_id": 2}
        return GPT2Config(**{**ends, **sizes, **changes})
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    sizes |= {"num_key_value_heads": 1, "max_position_embeddings": 96, "bos_token_id": 2}
    return LlamaConfig(**{**ends, **sizes, **changes})


def model_folder(folder: Path, family: str, *, chat: str | None = None, pad: bool = True, **changes: Any) -> Path:
    """A random model and its tokenizer, as ``save_pretrained`` writes them."""
    import transformers
    from transformers.utils import logging

    logging.disable_progress_bar()
    words = tokenizer(pad=pad, chat=chat)
    settings = config(family, len(words), **changes)
    auto = transformers.AutoModelForSeq2SeqLM if settings.is_encoder_decoder else transformers.AutoModelForCausalLM
    torch.manual_seed(0)
    auto.from_config(settings).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def rows(shape: str) -> list[dict[str, Any]]:
    """Records of a shape: sentences and what becomes of them."""
    if shape == "pairs":
        return [{"source": source, "target": target} for source, target in sentences()]
    if shape == "completions":
        return [{"prompt": f"{source} ->", "completion": f" {target}"} for source, target in sentences()]
    if shape == "text":
        return [{"text": f"{source} {target}"} for source, target in sentences()]
    turns = [("hello", "yes?", source, target) for source, target in sentences()]
    roles = ("user", "assistant", "user", "assistant")
    return [
        {"messages": [{"role": role, "content": words} for role, words in zip(roles, turn, strict=True)]}
        for turn in turns
    ]


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def write_recipe(folder: Path, model: Path, data: Path, more: str = "", method: str = "", seed: int = 0) -> Path:
    """A recipe that trains in about a second."""
    path = folder / "tiny.toml"
    ratio = 'name = "scheduled_sampling"\nteacher_forcing_ratio = 0.5'
    path.write_text(
        f'name = "tiny"\nseed = {seed}\n[data]\nkind = "records"\npath = "{data}"\ndev = 0.15\ntest = 0.15\n'
        f'[model]\nkind = "huggingface"\npath = "{model}"\n[method]\n{method or ratio}\n'
        "[train]\nupdates = 6\nbatch_size = 8\nlr = 0.01\nevaluate_every = 3\nsave_every = 3\n"
        f"[evaluate]\nlength_margin = 2\n{more}",
        encoding="utf-8",
    )
    return path
