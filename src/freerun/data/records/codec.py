"""Records as ids and back, by a tokenizer and its chat template; batches of them by their model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from freerun.arguments import brief
from freerun.batch import Batch
from freerun.data.files import check_description
from freerun.data.records.chat import Template, conversation, prompt_ids, special_ids
from freerun.data.records.columns import fields_of, filled
from freerun.data.records.files import Record
from freerun.data.records.messages import Message
from freerun.errors import UserError, display, listed

_SAVED = ("shape", "columns", "causal", "prefix", "chat", "separator", "end", "longest")
_LATER = ("quoting", "header")
"""Saved too; runs of earlier versions have them not."""


@dataclass(frozen=True)
class Encoded:
    """A record as ids.

    Args:
        prompt: source, or prompt; of a conversation all before the last answer; of plain text its first half.
        target: what follows it, with its end symbol.
        learned: positions in ``prompt`` that carry loss too: earlier answers, or all of a text.
        merged: whether the prompt ends within a token of prompt and completion as one.
        language: of the target, where each row has its own; "": that of the tokenizer.
        turns: of the assistant, that are learnt.
        unlearned: earlier turns of the assistant without loss, since the chat template rewrites them.
        muted: the same, since their weight is 0 or they are in a prompt.
    """

    __repr__ = brief

    prompt: tuple[int, ...]
    target: tuple[int, ...]
    learned: frozenset[int] = frozenset()
    merged: bool = False
    language: str = ""
    turns: int = 0
    unlearned: int = 0
    muted: int = 0

    def __len__(self) -> int:
        return len(self.prompt) + len(self.target)


@dataclass(frozen=True, eq=False)
class RecordCodec:
    """What a trained model needs of its data: the tokenizer, the shape of records, the longest answer.

    Args:
        tokenizer: of transformers; it has a pad symbol.
        shape: a name in ``SHAPES``.
        columns: the column of each part.
        causal: whether prompt and answer are one sequence.
        prefix: stands before every source.
        chat: whether prompts and completions are put into the tokenizer's chat template.
        separator: of CSV files.
        quoting: of CSV and TSV files.
        header: of the same.
        end: id that ends an answer; None: there is none.
        longest: ids of the longest training answer, without the end symbol.
        model: an adapted model, which makes the batches.
    """

    __repr__ = brief

    tokenizer: Any
    shape: str
    columns: Mapping[str, str] = field(default_factory=dict[str, str])
    causal: bool = True
    prefix: str = ""
    chat: bool = False
    separator: str = ","
    quoting: str | None = None
    header: bool | None = None
    end: int | None = None
    longest: int = 0
    model: Any = None

    @property
    def uses_chat_template(self) -> bool:
        """Whether the chat template is used."""
        return self.chat or self.shape == "messages"

    # -- text to ids

    def encoded(self, records: Sequence[Record]) -> tuple[list[Encoded | None], list[str]]:
        """Each record as ids, None where that cannot be; and why.

        A prompt's ids are those it has alone, as in generation, and its completion's are what the two as one text have
        more; where they merge over the boundary, those the completion has alone.
        """
        if not self.causal:
            return self._pairs(records)
        encoded: list[Encoded | None] = []
        problems: list[str] = []
        if self.uses_chat_template:
            for record in records:
                try:
                    encoded.append(self._conversation(record))
                except ValueError as error:
                    encoded.append(None)
                    problems.append(f"{record.origin}: {error}")
            return encoded, problems
        for record, one in zip(
            records, self._texts(records) if self.shape == "text" else self._completions(records), strict=True
        ):
            if one.prompt and one.target:
                encoded.append(one)
                continue
            reason = "a single token: nothing to predict" if one.prompt else "nothing before the answer: give a prompt"
            encoded.append(None)
            problems.append(f"{record.origin}: the tokenizer makes of it {reason}")
        return encoded, problems

    def _ids(self, texts: Sequence[str], **options: Any) -> list[list[int]]:
        return [list(ids) for ids in self.tokenizer(list(texts), verbose=False, **options)["input_ids"]]

    def _ended(self, ids: Sequence[int]) -> tuple[int, ...]:
        end = self.tokenizer.eos_token_id if self.end is None else self.end
        # only the tail counts, for a start symbol may have the same id; some put the language after the end
        ends = list(ids[-1:]) == [end] or (len(ids) > 2 and ids[-2] == end and ids[-1] in special_ids(self.tokenizer))
        return tuple(ids) if end is None or ends else (*ids, end)

    def _pairs(self, records: Sequence[Record]) -> tuple[list[Encoded | None], list[str]]:
        encoded: list[Encoded | None] = [None] * len(records)
        unknown = dict[str, list[str]]()
        for record in records:
            for language in {record.source_language, record.language}:
                if language_problem(self.tokenizer, language):
                    unknown.setdefault(language, []).append(record.origin)
        problems = [
            f"{rows[0]}{f', and {len(rows) - 1:,} more' * (len(rows) > 1)}: {language_problem(self.tokenizer, name)}"
            for name, rows in unknown.items()
        ]
        groups: dict[tuple[str, str], list[int]] = {}
        for number, record in enumerate(records):
            if not any(language_problem(self.tokenizer, each) for each in (record.source_language, record.language)):
                groups.setdefault((record.source_language, record.language), []).append(number)
        for (source, target), numbers in groups.items():
            chosen = [records[number] for number in numbers]
            for number, one in zip(numbers, self._pairs_of(chosen, source, target), strict=True):
                encoded[number] = one
        return encoded, problems

    def _pairs_of(self, records: Sequence[Record], source: str, target: str) -> list[Encoded]:
        """Records of one pair of languages."""
        sources = [f"{self.prefix}{record.prompt}" for record in records]
        with speaking(self.tokenizer, source, target):
            ids = self.tokenizer(sources, text_target=[record.target for record in records], verbose=False)
        own = language_id(self.tokenizer, target) if target else None
        made: list[Encoded] = []
        for prompt, labels in zip(ids["input_ids"], ids["labels"], strict=True):
            ended = self._ended(labels)
            # tokenizers put the language first, or last (where the decoder starts with it); others know none
            if own is not None and own not in (ended[0], ended[-1]):
                ended = (own, *ended)
            made.append(Encoded(tuple(prompt), ended, language=target))
        return made

    def decoder(self, languages: Sequence[str]) -> dict[str, Any]:
        """Arguments of the model's ``batch`` that name what each row's decoder begins with."""
        if not any(languages):
            return {}
        ids = torch.tensor([language_id(self.tokenizer, each) for each in languages])
        with speaking(self.tokenizer, "", languages[0]):
            labels = self.tokenizer(text_target=["a"], verbose=False)["input_ids"][0]
        last = labels[-1] == int(ids[0]) != labels[0]
        return {"decoder_start_token_id": ids, "forced_bos_token_id": None} if last else {"forced_bos_token_id": ids}

    def _completions(self, records: Sequence[Record]) -> list[Encoded]:
        prompts = self.prompts([str(record.prompt) for record in records])
        joined = self._ids([f"{self.prefix}{record.prompt}{record.target}" for record in records])
        alone = self._ids([record.target for record in records], add_special_tokens=False)
        encoded: list[Encoded] = []
        for prompt, both, completion in zip(prompts, joined, alone, strict=True):
            fits = both[: len(prompt)] == prompt and len(both) > len(prompt)
            target = both[len(prompt) :] if fits else completion
            encoded.append(Encoded(tuple(prompt), self._ended(target), merged=not fits))
        return encoded

    def _texts(self, records: Sequence[Record]) -> list[Encoded]:
        return [encoded_text(self._ended(ids)) for ids in self._ids([record.target for record in records])]

    def _conversation(self, record: Record) -> Encoded:
        answer = {"role": "assistant", "content": record.target, **record.answer}
        found = conversation(Template(self.tokenizer, record.more), (*self._messages(record.prompt), answer))
        return Encoded(
            tuple(found.prompt), tuple(found.target), found.learned, found.merged,
            turns=found.turns, unlearned=found.unlearned, muted=found.muted,
        )  # fmt: skip

    def _messages(self, prompt: str | tuple[Message, ...]) -> tuple[Message, ...]:
        return ({"role": "user", "content": prompt},) if isinstance(prompt, str) else prompt

    def prompt_of(self, row: Mapping[str, Any]) -> Any:
        """The source or prompt in a row, as the training rows have it; None where there is none."""
        return filled(row, next(iter(self.columns.values())))

    def prompt_of_line(self, line: str) -> Any:
        """The source or prompt of a plain line; in a template of several columns the line is the first of them."""
        name = next(iter(self.columns.values()), "")
        return filled({fields_of(name)[0]: line}, name) if "{" in name else line

    def prompts(
        self, texts: Sequence[str | tuple[Message, ...]], language: str = "", more: Mapping[str, Any] | None = None
    ) -> list[list[int]]:
        """Return the ids of prompts to answer, in a language; raise ValueError if the chat template refuses one.

        ``more`` is what the chat template has beside messages: tools.
        """
        if self.uses_chat_template:
            return [prompt_ids(Template(self.tokenizer, more or {}), self._messages(text)) for text in texts]
        plain = [f"{self.prefix}{text}" for text in texts]
        if not self.causal:
            with speaking(self.tokenizer, language, ""):
                return self._ids(plain)
        eos = self.tokenizer.eos_token_id
        # a prompt does not end: there is something to come
        return [ids[:-1] if ids and ids[-1] == eos else ids for ids in self._ids(plain)]

    # -- ids to text

    def text(self, ids: Sequence[int]) -> str:
        """The text of an answer's ids, up to the end symbol, without blanks around it."""
        numbers = list(ids)
        numbers = numbers[: numbers.index(self.end)] if self.end in numbers else numbers
        return str(self.tokenizer.decode(numbers, skip_special_tokens=True)).strip()

    def reference(self, record: Record, encoded: Encoded) -> str:
        """The text that an answer is compared with: of chats as the template has it, of texts their second half."""
        own = self.shape == "text" or self.uses_chat_template
        return self.text(encoded.target) if own else record.target.strip()

    # -- batches

    def training_batch(self, chosen: Sequence[Encoded], rows: Tensor | None = None) -> Batch:
        """Return a batch with loss on answers and on all that ``learned`` names."""
        if not self.causal:
            labels, _ = self._padded([one.target for one in chosen], -100)
            begin = self.decoder([one.language for one in chosen])
            return self._batch([one.prompt for one in chosen], labels=labels, rows=rows, **begin)
        labels, _ = self._padded(
            [
                [*(n if position in one.learned else -100 for position, n in enumerate(one.prompt)), *one.target]
                for one in chosen
            ],
            -100,
        )
        return self._batch([(*one.prompt, *one.target) for one in chosen], labels=labels, rows=rows)

    def answer_batch(self, chosen: Sequence[Encoded], rows: Tensor | None = None) -> Batch:
        """Return a batch of the last answers alone, without what generation forces: nothing is predicted there."""
        batch = self.training_batch([replace(one, learned=frozenset()) for one in chosen], rows)
        return self.model.scored(batch)

    def prompt_batch(self, prompts: Sequence[Sequence[int]], languages: Sequence[str] = ()) -> Batch:
        """Return a batch of prompts to continue, each in a language."""
        return self._batch(prompts, **self.decoder(languages))

    def _batch(self, rows_of_ids: Sequence[Sequence[int]], **options: Any) -> Batch:
        if self.model is None:
            raise UserError("records become batches by their model: bind one first")
        self.model.shifts = True  # these labels are at their ids, whatever the class's own loss takes them for
        ids, mask = self._padded(rows_of_ids, self.tokenizer.pad_token_id or 0)
        return self.model.batch(input_ids=ids, attention_mask=mask.long(), **options)

    def _padded(self, rows: Sequence[Sequence[int]], fill: int) -> tuple[Tensor, Tensor]:
        """(rows, longest) ids, padded on the right, and their mask."""
        tensors = [torch.tensor(list(row), dtype=torch.int64) for row in rows]
        ids = torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=fill)
        lengths = torch.tensor([len(row) for row in rows])
        return ids, torch.arange(ids.shape[1]) < lengths[:, None]

    # -- what is saved

    def describe(self) -> dict[str, Any]:
        """Return what is saved with a model, as JSON types; the tokenizer lies beside it in its own files."""
        facts = {name: getattr(self, name) for name in (*_SAVED, *_LATER)}
        return {"kind": "records", **facts, "columns": dict(self.columns), "tokenizer": [self.vocabulary]}

    @property
    def vocabulary(self) -> str:
        """Return the first 8 hexadecimal digits of the SHA-256 of symbols, ids and chat template."""
        text = json.dumps([sorted(self.tokenizer.get_vocab().items()), str(self.tokenizer.chat_template)])
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    @classmethod
    def from_description(cls, description: Mapping[str, Any], tokenizer: Any, model: Any = None) -> RecordCodec:
        """Return the codec of a description; raise UserError if that or the tokenizer is another one."""
        check_description(description, "records", dict.fromkeys((*_SAVED, "tokenizer"), object))
        facts = {name: description[name] for name in (*_SAVED, *_LATER) if name in description}
        codec = cls(tokenizer, **facts, model=model)
        if description["tokenizer"] != [codec.vocabulary]:
            raise UserError("the tokenizer is not the one that the model was trained with: its files have changed")
        return codec


_WRITTEN = ("{}", "__{}__", "<{}>", "<2{}>", "<|{}|>", ">>{}<<")
"""How vocabularies write the symbol of a language."""


def language_id(tokenizer: Any, language: str) -> int | None:
    """The id of a language's symbol; None: the tokenizer has none."""
    codes = getattr(tokenizer, "lang_code_to_id", None) or {}
    if language in codes:
        return int(codes[language])
    special = special_ids(tokenizer)
    for form in _WRITTEN:
        number = tokenizer.convert_tokens_to_ids(form.format(language))
        if number is not None and number in special and number != tokenizer.unk_token_id:
            return int(number)
    return None


def language_problem(tokenizer: Any, language: str) -> str:
    """Return what is wrong with the name of a language, or \"\"."""
    if not language or language_id(tokenizer, language) is not None:
        return ""
    known = [str(token) for token in tokenizer.all_special_tokens]
    return (
        f"{display(language, 40)} is no language of the tokenizer; its special symbols are {listed(known) or 'none'}: "
        "write it as the tokenizer does, or add its symbol (tokenizer.add_special_tokens, resize_token_embeddings); "
        "for a model that reads the language in its source, as T5 does, write a template, "
        'data.source = "translate to {column}: {source}"'
    )


@contextmanager
def speaking(tokenizer: Any, source: str, target: str) -> Generator[None]:
    """The tokenizer set to a pair of languages inside; "" is its own."""
    languages = {name: each for name, each in (("src_lang", source), ("tgt_lang", target)) if each}
    before = {name: getattr(tokenizer, name) for name in languages if hasattr(tokenizer, name)}
    for name in before:
        setattr(tokenizer, name, languages[name])
    try:
        yield
    finally:
        for name, each in before.items():
            setattr(tokenizer, name, each)


def encoded_text(ids: Sequence[int]) -> Encoded:
    """A plain text, of which all is learned and the second half is compared."""
    half = max(1, len(ids) // 2)
    return Encoded(tuple(ids[:half]), tuple(ids[half:]), frozenset(range(half)))
