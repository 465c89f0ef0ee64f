"""Conversations as ids by a tokenizer's chat template: which of them the assistant says."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from freerun.data.records.columns import Message
from freerun.errors import out_of_memory

__all__ = ["asked", "conversation", "special_ids"]

_MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")
"""How a template marks what the assistant says."""


def special_ids(tokenizer: Any) -> frozenset[int]:
    """Ids that stand for no text: ends of turns, start symbols and so on."""
    added = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(added | set(tokenizer.all_special_ids))


def asked(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Ids of a conversation up to where the assistant is to begin."""
    return _ids(tokenizer, messages, add_generation_prompt=True)


def conversation(tokenizer: Any, messages: Sequence[Message]) -> tuple[list[int], list[bool]]:
    """Ids of a conversation up to the end of its last message, and which of them the assistant says.

    A template that marks them (``{% generation %}``) is taken at its word. Otherwise a message is what the whole has
    more than the conversation before it; earlier messages of which the template changes the beginning (some leave out
    what was thought) are then told and not learnt.

    Raises:
        ValueError: the last message cannot be told apart, no answer would learn to stop, or the template refuses the
            conversation.
    """
    if _MARKED.search(str(tokenizer.chat_template)):
        found = _render(tokenizer, messages, return_assistant_tokens_mask=True)
        ids, said = list(found["input_ids"]), [bool(one) for one in found["assistant_masks"]]
        if not any(said):
            raise ValueError("the chat template marks nothing of it as said by the assistant")
        _check_ends(tokenizer, ids, said)
    else:
        ids, said = _by_prefix(tokenizer, messages)
    end = len(said) - said[::-1].index(True)
    return ids[:end], said[:end]


def _by_prefix(tokenizer: Any, messages: Sequence[Message]) -> tuple[list[int], list[bool]]:
    whole = _ids(tokenizer, messages)
    special = special_ids(tokenizer)
    said = [False] * len(whole)
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = asked(tokenizer, messages[:number])
        after = _ids(tokenizer, messages[: number + 1])
        last = number + 1 == len(messages)
        if whole[: len(before)] != before or whole[: len(after)] != after:
            if last:
                raise ValueError(
                    "the chat template does not begin the whole conversation as it begins the one before the last "
                    "message, so that message cannot be told apart: mark it in the template with {% generation %}"
                )
            continue
        _check_header(tokenizer, messages[: number + 1], before, after)
        end = max((place for place in range(len(before), len(after)) if whole[place] in special), default=None)
        # a line end after the end of the turn is the template's, not the assistant's
        ended = end is not None and not str(tokenizer.decode(after[end + 1 :])).strip()
        for place in range(len(before), end + 1 if end is not None and ended else len(after)):
            said[place] = True
    if not any(said):
        raise ValueError("the chat template leaves the last message empty")
    return whole, said


def _check_ends(tokenizer: Any, ids: Sequence[int], said: Sequence[bool]) -> None:
    """Refuse a marked answer before a special symbol that ends it and is not marked."""
    special = special_ids(tokenizer)
    for place in range(1, len(ids)):
        if not said[place - 1] or said[place] or ids[place] not in special:
            continue
        last = place - 1
        while said[last] and last and not str(tokenizer.decode([ids[last]])).strip():
            last -= 1
        if ids[last] not in special:
            symbol = tokenizer.convert_ids_to_tokens(ids[place])
            raise ValueError(
                f"the chat template marks an answer without the {symbol!r} after it, so no answer would learn to stop: "
                "put the symbol that ends a turn before {% endgeneration %}"
            )


def _check_header(tokenizer: Any, messages: Sequence[Message], before: list[int], after: list[int]) -> None:
    """Refuse a template that leaves it to the model to say whose turn it is."""
    if before != _ids(tokenizer, messages[:-1]):
        return
    # blanks apart, which some tokenizers change; content that the template changes is not found, and not judged
    text, content = (
        "".join(str(one).split()) for one in (tokenizer.decode(after[len(before) :]), messages[-1]["content"])
    )
    if text.find(content) > 0:
        raise ValueError(
            f"the chat template takes no notice of add_generation_prompt, so {text[: text.find(content)]!r} before an "
            "answer would be learnt as its words: let the template write it where add_generation_prompt is true, or "
            "mark the answers with {% generation %}"
        )


def _ids(tokenizer: Any, messages: Sequence[Message], **options: bool) -> list[int]:
    return list(_render(tokenizer, messages, **options)["input_ids"])


def _render(tokenizer: Any, messages: Sequence[Message], **options: bool) -> Any:
    try:
        return tokenizer.apply_chat_template(list(messages), tokenize=True, return_dict=True, **options)
    except Exception as error:  # a template's own, of many kinds: roles that must alternate, an unknown role
        if out_of_memory(error):
            raise
        raise ValueError(f"the chat template refuses it: {(str(error).splitlines() or [''])[0]}") from error
