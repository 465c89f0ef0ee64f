"""Conversations in cells: lists of {role, content}, or of ShareGPT's {from, value}; what is wrong with them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from freerun.data.tables import parsed
from freerun.errors import display

Message = Mapping[str, Any]
SPEAKERS = {
    "system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant",
    "chatgpt": "assistant", "bing": "assistant", "bard": "assistant", "model": "assistant",
    "function_call": "assistant", "tool_call": "assistant", "observation": "tool", "tool": "tool",
    "function_response": "tool", "tool_response": "tool",
}  # fmt: skip
"""Who speaks, in the words of ShareGPT and its relatives -> the role."""

_NAMES = {name: SPEAKERS[name] for name in ("system", "human", "user", "gpt", "assistant", "chatgpt", "bing", "bard")}
"""Those that are no role of any template, and in which a turn of the assistant would not be learnt."""

BESIDE = {"tools": "a list of JSON schemas", "chat_template_kwargs": "an object"}
"""What a row may have for the chat template beside messages: the part, and usually its column's name -> what it is."""


def text_problem(cell: Any) -> str:
    """Return what is wrong with a text that no file can hold, or \"\"."""
    half = re.search("[\ud800-\udfff]", cell) if isinstance(cell, str) else None
    return f"holds half of a surrogate pair, {display(half[0])}, which is no character" if half else ""


def conversation_of(cell: Any) -> tuple[Message, ...] | str:
    """A cell as messages of role and content, whoever speaks last; or what is wrong with it."""
    if isinstance(cell, str):
        try:
            cell = parsed(cell)
        except ValueError:
            return "holds text that is no JSON; expected a list of {role, content}"
    if not isinstance(cell, Sequence) or not all(isinstance(message, Mapping) for message in cell):
        return 'holds no conversation; expected a list of {"role": ..., "content": ...}'
    messages: list[Message] = []
    for number, entry in enumerate(cell, start=1):
        message = {key: part for key, part in entry.items() if part is not None}
        if "from" in message and "role" not in message:
            speaker, message = message.pop("from"), {"content": message.pop("value", None), **message}
            message = {"role": SPEAKERS.get(speaker.lower()) if isinstance(speaker, str) else None, **message}
            if message["role"] is None:
                return f"has a message from {display(speaker, 40)}, in message {number}; expected {', '.join(SPEAKERS)}"
        if isinstance(role := message.get("role"), str):
            message["role"] = _NAMES.get(role.lower(), role)
        if (weight := message.get("weight", 1)) not in (0, 1):
            return f"has a weight of {display(weight, 40)}, in message {number}; 0 is not learnt, 1 is"
        content = message.get("content", "" if message.get("tool_calls") else None)
        if isinstance(content, list) and all(_is_text(part) for part in content):
            message["content"] = content = "".join(part["text"] for part in content)
        if not isinstance(message.get("role"), str) or not isinstance(content, str):
            return f"has no role and content, both text, in message {number}{_holding(content)}"
        if wrong := text_problem(message["role"]) or text_problem(content):
            return f"{wrong}, in message {number}"
        messages.append(message)
    return tuple(messages)


def template_cell(part: str, cell: Any) -> dict[str, Any] | str:
    """What a cell holds for the chat template beside messages, a part of ``BESIDE``; or what is wrong with it."""
    if isinstance(cell, str) and cell.strip():
        try:
            cell = parsed(cell)
        except ValueError:
            return f"holds text that is no JSON; expected {BESIDE[part]}"
    if cell is None or cell in ("", [], {}):
        return {}
    if part != "tools" and isinstance(cell, dict):
        return cell
    if part == "tools" and isinstance(cell, list) and all(isinstance(tool, dict) for tool in cell):
        return {part: cell}
    return f"holds {display(cell, 40)}; expected {BESIDE[part]}"


def _is_text(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type", "text") == "text" and isinstance(part.get("text"), str)


def _holding(content: Any) -> str:
    kinds = (
        {str(part.get("type")) for part in content if isinstance(part, Mapping)} if isinstance(content, list) else ()
    )
    return f": it holds {', '.join(sorted(kinds))}" if kinds else ""


def completed(prompt: Any, completion: Any) -> tuple[Message, ...] | str:
    """The conversation of a prompt and a completion that are messages, of which only the completion is learnt."""
    before = conversation_of(prompt)
    if isinstance(before, str):
        return f"of the prompt {before}"
    if before and before[-1]["role"] == "assistant":
        return "of the prompt ends with a message of the assistant, which the completion cannot go on with: join them"
    after = answered(completion)
    muted = [{**message, "weight": 0} if message["role"] == "assistant" else message for message in before]
    return f"of the completion {after}" if isinstance(after, str) else (*muted, *after)


def answered(cell: Any) -> tuple[Message, ...] | str:
    """A conversation that ends with the assistant, or what is wrong with it."""
    messages = conversation_of(cell)
    if isinstance(messages, str):
        return messages
    *_, last = messages
    if last["role"] != "assistant":
        ending = "the last must be the assistant's: it is what is learnt"
        return f"ends with a message of {display(last['role'], 40)}; {ending}"
    if not str(last.get("content") or "").strip() and not last.get("tool_calls"):
        return "ends with an empty message; there is nothing to learn in it"
    return messages
