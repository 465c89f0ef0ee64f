"""Conversations as ids: which tokens are the assistant's, by their offsets in the rendered text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from inspect import signature
from itertools import groupby
from typing import Any

from freerun.arguments import brief
from freerun.data.records.messages import Message
from freerun.errors import listed, needing, out_of_memory

_MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")
"""How a template marks the assistant's words."""
_SIGN = "\ue000\ue001\ue002"
"""Stands in for a message, to find where a template writes it: private characters, which no text has."""
Span = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Template:
    """A tokenizer's chat template and what a row has for it beside messages: tools, and arguments of its own."""

    __repr__ = brief

    tokenizer: Any
    more: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def source(self) -> str:
        """The template itself; a tokenizer may have another one for rows with tools."""
        return str(self.tokenizer.get_chat_template(tools=self.more.get("tools")))

    def text(self, messages: Sequence[Message], *, begin: bool = False) -> str:
        """What the template writes, with ``begin`` up to where the assistant is to begin; ValueError if it refuses."""
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    list(messages), tokenize=False, add_generation_prompt=begin, **self.more
                )
            )
        except Exception as error:  # a template's own, of many kinds: roles that must alternate, an unknown role
            if out_of_memory(error):
                raise
            raise ValueError(f"the chat template refuses it: {(str(error).splitlines() or [''])[0]}") from error

    def tried(self, messages: Sequence[Message]) -> str | None:
        """The text of messages, None where the template refuses them."""
        try:
            return self.text(messages)
        except ValueError:
            return None

    def check(self, messages: Sequence[Message]) -> None:
        """Raise ValueError if what a row has beside messages is an argument of ours, or tools that are not written."""
        own = set(self.more) & set(signature(self.tokenizer.apply_chat_template).parameters) - {"tools", "documents"}
        if own:
            raise ValueError(f"has {listed(sorted(own))} for the chat template, which is no variable of a template")
        without = replace(self, more={name: part for name, part in self.more.items() if name != "tools"})
        if self.more.get("tools") and self.text(messages) == without.text(messages):
            raise ValueError(
                'has tools, and the chat template does not write them: use a template that does, or set tools = ""'
            )


@dataclass(frozen=True)
class Turns:
    """A conversation as ids.

    Args:
        prompt: all before the last answer, with the ids that it has alone, as in generation.
        target: the last answer.
        learned: positions in ``prompt`` that are the assistant's.
        merged: whether prompt and answer as one text have a token over their boundary.
        turns: of the assistant, that are learnt, the last one with them; of those that the template joins one.
        unlearned: turns of the assistant that the template rewrites, of which nothing is in ``learned``.
        muted: messages of the assistant whose weight is 0, of which nothing is in ``learned``.
    """

    __repr__ = brief

    prompt: list[int]
    target: list[int]
    learned: frozenset[int]
    merged: bool
    turns: int
    unlearned: int
    muted: int


def special_ids(tokenizer: Any) -> frozenset[int]:
    """Ids that stand for no text: ends of turns, start symbols and so on."""
    added = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(added | set(tokenizer.all_special_ids))


def prompt_ids(template: Template, messages: Sequence[Message]) -> list[int]:
    """Ids of a conversation up to where the assistant is to begin."""
    template.check(messages)
    return _ids(template.tokenizer, template.text(messages, begin=True))


def conversation(template: Template, messages: Sequence[Message]) -> Turns:
    """Return the ids of a conversation up to the end of its last answer; raise ValueError where none can be found."""
    if messages[-1].get("weight") == 0:
        raise ValueError("ends with an answer of weight 0, which is not to be learnt: end the conversation before it")
    template.check(messages)
    tokenizer = template.tokenizer
    marked = _MARKED.search(template.source) is not None
    text, spans, unlearned = (_marked if marked else _found)(template, messages)
    ids, spoken = _spoken(tokenizer, text, spans)
    if marked:
        _check_ends(tokenizer, ids, spoken)
    start, end = spans[-1]
    prompt, learned = _spoken(tokenizer, text[:start], spans[:-1])
    last = len(spoken) - spoken[::-1].index(True) if True in spoken else 0
    merged = ids[: len(prompt)] != prompt
    target = _ids(tokenizer, text[start:end]) if merged else ids[len(prompt) : last]
    if not target:
        raise ValueError("the chat template leaves the last message empty")
    positions = frozenset(n for n, own in enumerate(learned) if own)
    muted = sum(message["role"] == "assistant" and message.get("weight") == 0 for message in messages)
    return Turns(prompt, target, positions, merged, turns=len(spans), unlearned=unlearned, muted=muted)


def _spoken(tokenizer: Any, text: str, spans: Sequence[Span]) -> tuple[list[int], list[bool]]:
    """The ids of a text, and True for those within one of the spans, or with a character of it that is no blank."""
    if not tokenizer.is_fast:
        return _spoken_by_prefixes(tokenizer, text, spans)
    made = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    spoken: list[bool] = []
    reached = 0
    for begin, end in made["offset_mapping"]:
        # some leave blanks out of the offsets: a token without characters has those since the one before
        own = (begin, end) if begin < end else (reached, max(end, reached + 1))
        parts = [(max(own[0], first), min(own[1], last)) for first, last in spans]
        spoken.append(any(part == own or text[slice(*part)].strip() for part in parts if part[0] < part[1]))
        reached = max(reached, end)
    return list(made["input_ids"]), spoken


def _spoken_by_prefixes(tokenizer: Any, text: str, spans: Sequence[Span]) -> tuple[list[int], list[bool]]:
    """The same for a tokenizer without offsets: what the text up to a span's end has more than that up to its start."""
    ids = _ids(tokenizer, text)
    spoken = [False] * len(ids)
    for first, last in spans:
        before, after = _ids(tokenizer, text[:first]), _ids(tokenizer, text[:last])
        end = _common(after, ids)
        for position in range(_common(before, ids), end + (end < min(len(after), len(ids)))):
            spoken[position] = True
    return ids, spoken


def _common(first: Sequence[Any], second: Sequence[Any]) -> int:
    """The number of entries of the longest prefix that two sequences share."""
    shorter = min(len(first), len(second))
    return next((n for n in range(shorter) if first[n] != second[n]), shorter)


def _marked(template: Template, messages: Sequence[Message]) -> tuple[str, list[Span], int]:
    """A conversation as text, what its template marks as the assistant's, and the number of turns that it does not."""
    with needing("hf", "a chat template"):
        from transformers.utils.chat_template_utils import render_jinja_template

    # as apply_chat_template does; its own mask of tokens misses those of which the tokenizer leaves out a blank
    text = template.text(messages)
    _, found = render_jinja_template(
        conversations=[[dict(message) for message in messages]], chat_template=template.source,
        return_assistant_tokens_mask=True, **template.tokenizer.special_tokens_map, **template.more,
    )  # fmt: skip
    spans: list[Span] = [(int(start), int(end)) for start, end in found[0] if start < end]
    answers = [message for message in messages if message["role"] == "assistant"]
    left_out = [n for n, message in enumerate(answers) if message.get("weight") == 0]
    if left_out and len(spans) != len(answers):
        raise ValueError("has an answer of weight 0, and the chat template does not mark each answer once")
    spans = [span for n, span in enumerate(spans) if n not in left_out]
    if not spans:
        raise ValueError("the chat template marks nothing of it as the assistant's")
    turns = sum(is_answer for is_answer, _ in groupby(messages, lambda message: message["role"] == "assistant"))
    return text, spans, max(0, turns - len(left_out) - len(spans))


def _found(template: Template, messages: Sequence[Message]) -> tuple[str, list[Span], int]:
    """A conversation as text, where its assistant's turns are, and the number of turns that the template rewrites."""
    text = template.text(messages)
    spans: list[Span] = []
    unlearned = 0
    for number, message in enumerate(messages):
        if message["role"] != "assistant" or message.get("weight") == 0:
            continue
        begin = _begin(template, messages, number, text)
        span = _turn(template, messages, number, text, begin)
        joins = (
            span is not None and begin is None and number > 0 and messages[number - 1]["role"] == "assistant"
            and bool(spans) and not text[spans[-1][1] : span[0]].strip()
        )  # fmt: skip
        if span is None:
            unlearned += 1
        elif joins:  # the template makes one turn of the two
            spans[-1] = spans[-1][0], span[1]
        else:
            spans.append(span)
        if number + 1 == len(messages) and (span is None or (begin is None and not joins)):
            raise ValueError(
                "the chat template does not begin the whole conversation as it begins the one before the last "
                "message, so that message cannot be separated: mark it in the template with {% generation %}"
            )
    return text, spans, unlearned


def _begin(template: Template, messages: Sequence[Message], number: int, text: str) -> int | None:
    """Where generation of a message would begin; None where the text does not begin with what is before it."""
    try:
        before = template.text(messages[:number], begin=True)
    except ValueError:  # of the first message, or one that must follow another
        if number + 1 == len(messages):
            raise
        return None
    return len(before) if text.startswith(before) else None


def _turn(template: Template, messages: Sequence[Message], number: int, text: str, begin: int | None) -> Span | None:
    """The characters of a message and of the symbol that ends it; None where the template has changed it."""
    special = re.compile("|".join(map(re.escape, _special_texts(template.tokenizer))) or "(?!)")
    content = str(messages[number].get("content") or "")
    after = text if number + 1 == len(messages) else template.tried(messages[: number + 1])
    if begin is not None and after is not None and begin <= len(after) and text.startswith(after):
        _check_header(template, messages[:number], text[begin : len(after)], content, begin)
        last = max((found.end() for found in special.finditer(after, begin)), default=len(after))
        # a line end after the end of the turn is the template's, not the assistant's
        return begin, len(after) if after[last:].strip() else last
    own = _written(template, messages, number, text)
    if own is None or "".join(text[slice(*own)].split()) != "".join(content.split()):
        return None
    if begin is not None:
        _check_header(template, messages[:number], text[begin : own[1]], content, begin)
    end = special.match(text, own[1] + len(text[own[1] :]) - len(text[own[1] :].lstrip()))
    closing = [found[0] for found in special.finditer(text) if not text[found.end() :].strip()]
    return own[0] if begin is None else min(begin, own[0]), end.end() if end and end[0] in closing else own[1]


def _written(template: Template, messages: Sequence[Message], number: int, text: str) -> Span | None:
    """Where the content of a message stands in the text of the whole: where a sign in its stead does."""
    signed = [*messages[:number], {**messages[number], "content": _SIGN}, *messages[number + 1 :]]
    head, found, rest = (template.tried(signed) or "").partition(_SIGN)
    fits = found and _SIGN not in rest and text.startswith(head) and text.endswith(rest)
    return (len(head), len(text) - len(rest)) if fits and len(head) + len(rest) <= len(text) else None


def _special_texts(tokenizer: Any) -> list[str]:
    return sorted(map(str, tokenizer.convert_ids_to_tokens(sorted(special_ids(tokenizer)))), key=len, reverse=True)


def _check_ends(tokenizer: Any, ids: Sequence[int], spoken: Sequence[bool]) -> None:
    """Raise ValueError if a marked answer ends before an unmarked special symbol that ends the turn."""
    special = special_ids(tokenizer)
    for position in range(1, len(ids)):
        if not spoken[position - 1] or spoken[position] or ids[position] not in special:
            continue
        last = position - 1
        while spoken[last] and last and not str(tokenizer.decode([ids[last]])).strip():
            last -= 1
        if ids[last] not in special:
            symbol = tokenizer.convert_ids_to_tokens(ids[position])
            raise ValueError(
                f"the chat template marks an answer without the {symbol!r} after it, so no answer would learn to stop: "
                "put the symbol that ends a turn before {% endgeneration %}"
            )


def _check_header(template: Template, before: Sequence[Message], turn: str, content: str, begin: int) -> None:
    """Raise ValueError if the template leaves it to the model to write whose turn it is."""
    # blanks apart; content that the template changes is not found, and not judged
    turn, content = ("".join(each.split()) for each in (turn, content))
    if turn.find(content) > 0 and len(template.tried(before) or "") == begin:
        raise ValueError(
            f"the chat template takes no notice of add_generation_prompt, so {turn[: turn.find(content)]!r} before an "
            "answer would be learnt as its words: let the template write it where add_generation_prompt is true, or "
            "mark the answers with {% generation %}"
        )


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
