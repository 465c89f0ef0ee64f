"""Whether records, their settings, a tokenizer and a model go together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from freerun.config.records_sections import RecordsData
from freerun.errors import UserError

if TYPE_CHECKING:
    from freerun.data.records import RecordCoder

__all__ = ["refuse_other_tokenizer", "refuse_shape", "refuse_without_template", "without_effect"]


def refuse_other_tokenizer(tokenizer: Any, config: Any, given: Any) -> None:
    """Refuse a tokenizer with more symbols than the model has.

    Raises:
        UserError: says what to do.
    """
    known = getattr(config.get_text_config(decoder=True), "vocab_size", None)
    if known is not None and len(tokenizer) > known:
        whose = f"{given.tokenizer}, of the tokenizer" if given.tokenizer else f"{given.path}"
        raise UserError(
            f"{whose}: the tokenizer has {len(tokenizer):,} symbols and the model {known:,}: ids from {known:,} on "
            "mean nothing to it\n  help: give the model's own tokenizer (leave model.tokenizer out), or save the model "
            "after model.resize_token_embeddings(len(tokenizer))"
        )


def refuse_shape(shape: str, encoder_decoder: bool, path: str) -> None:
    """Refuse records that are for the other kind of model.

    Raises:
        UserError: says which columns are needed.
    """
    if encoder_decoder == (shape == "pairs"):
        return
    kind, needed = ("an encoder-decoder", "source and target") if encoder_decoder else (
        "a causal model", "prompt and completion, messages, or text"
    )  # fmt: skip
    raise UserError(f"{path} is {kind}, and the records are {shape}: name the columns for {needed} under [data]")


def without_effect(settings: RecordsData, coder: RecordCoder) -> list[str]:
    """What only shows once it is known what the records are."""
    problems: list[str] = []
    if settings.prefix and (coder.talks or coder.shape == "text"):
        problems.append(f"data.prefix has no effect on {'a chat' if coder.talks else 'plain text'}: leave it out")
    if settings.chat and coder.shape != "completions":
        problems.append(f"data.chat is for prompts and completions; the records are {coder.shape}: leave it out")
    if settings.too_long == "cut" and coder.talks:
        problems.append('data.too_long = "cut" would cut a conversation within its template: use "drop"')
    if coder.shape == "text" and settings.max_source is not None:
        problems.append("data.max_source has no effect on plain text: data.max_target limits it")
    return problems


def refuse_without_template(coder: RecordCoder, given: Any) -> None:
    """Refuse conversations where the tokenizer has no chat template.

    Raises:
        UserError: says how to give one.
    """
    if coder.talks and not coder.tokenizer.chat_template:
        name = given.tokenizer or given.path
        raise UserError(
            f"{name}: the tokenizer has no chat template, which conversations need\n  help: give one with model."
            "chat_template = FILE (Jinja), or train on prompt and completion without chat"
        )
