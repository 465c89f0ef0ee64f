"""A teacher by its folder, and whether it and a student fit each other: symbols, ends, templates, distance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from freerun.arguments import brief
from freerun.checks.report import Check, Report, Verdict
from freerun.data.records import RecordCodec
from freerun.data.records.chat import special_ids
from freerun.errors import UserError, display, listed
from freerun.methods import GKD, Teacher
from freerun.methods.gkd import width_problem
from freerun.models.pretrained import Pretrained, declared_ends, read_config, read_tokenizer
from freerun.recipes.load import LoadedRun, load_adapted, load_run, require_run, trial_batch
from freerun.tasks.records import RecordTask
from freerun.training import weights

if TYPE_CHECKING:
    from torch.nn import Module

_FIRST = 3
"""Differences that are named."""
_OTHER = {"kind", "longest", "length", "end"}
"""Parts of a description that data of the same symbols may have otherwise, or that are compared apart."""
_ROLES = ("bos", "unk", "sep", "cls", "mask")


@dataclass(frozen=True)
class Side:
    """What is compared of a student or a teacher, read without its weights.

    Args:
        kind: of data, "records" for a model of transformers.
        tables: by name, id -> symbol.
        facts: what else gives the symbols their meaning.
        width: ids that the model predicts; None: unknown.
        start: id that a decoder begins with; None: none, or unknown.
        end: id that ends the rows it is trained on.
        ends: all ids that end a row of it.
        pad: id and symbol of the padding.
        special: ids that stand for no text, and the roles of some.
        template: of chats.
        chats: whether chats are what it is trained on; None: unknown.
        load: the model, ready to use; None for one that is there already.
    """

    __repr__ = brief

    kind: str
    tables: Mapping[str, Mapping[int, str]] = field(default_factory=dict[str, Mapping[int, str]])
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])
    width: int | None = None
    start: int | None = None
    end: int | None = None
    ends: tuple[int, ...] = ()
    pad: tuple[int, str] | None = None
    special: Mapping[str, Any] = field(default_factory=dict[str, Any])
    template: str | None = None
    chats: bool | None = None
    load: Callable[[], Any] = lambda: None

    def symbol(self, number: int) -> str:
        """An id with its symbol."""
        name = self.tables.get("vocabulary", {}).get(number)
        return str(number) if name is None else f"{display(name, 40)} ({number})"


class Pair(NamedTuple):
    """A student and a teacher."""

    student: Side
    teacher: Side


def check_pair(student: str, teacher: str) -> Report:
    """Whether gkd can run with two models, each the folder of a run or a folder or name of transformers.

    Weights are read only where nothing else stands against the pair, for the distance on a small made-up batch.
    """
    pair = Pair(read_side(student), read_side(teacher))
    found = findings(pair)
    if not found.refused:
        last = Check(_distance, "a small made-up batch", "the teacher must take the student's batches")(pair)
        found = Report((*found.findings, last))
    return found


def with_teacher(method: Any, data: Any, model: Module) -> Any:
    """The method; one whose teacher is the folder of a run, or of a pretrained model, with that model.

    Raises:
        UserError: the teacher does not fit the data and the model that is trained on them; all reasons at once.
    """
    folder = getattr(method, "teacher", None)
    if not isinstance(folder, str):
        return method
    if isinstance(data.codec, RecordCodec):
        inner: Any = model
        student = _pretrained_side(data.codec.tokenizer, inner.inner.config, data.codec.end)
        student = replace(student, width=inner.target_vocab, chats=data.codec.uses_chat_template)
        other = read_side(folder)
    else:
        student = _described_side(data.codec.describe())
        require_run(Path(folder))
        other = read_side(folder)
    found = findings(Pair(student, other))
    if found.refused:
        where = f"method.teacher = {folder!r}"
        raise UserError([f"{where}: {finding.name}: {finding.explanation}" for finding in found.refused])
    notes = tuple(f"{finding.name}: {finding.explanation}" for finding in found.warnings)
    return replace(method, teacher=Teacher(other.load().model.requires_grad_(False), follows=True, notes=notes))


def read_side(path: str) -> Side:
    """What is compared of the folder of a run, or of a folder or name of transformers."""
    folder = Path(path).expanduser()
    if (folder / "model" / "model.json").exists():
        info = weights.read_info(folder)
        if info["kind"] != "huggingface":
            return replace(_described_side(info["describe"]), load=partial(load_run, folder))
        described = info["describe"]
        side = _read_pretrained(str(folder / "model"), described.get("end"))
        chats = bool(described.get("chat")) or described.get("shape") == "messages"
        return replace(side, chats=chats, load=partial(load_run, folder))
    if folder.is_dir() and not (folder / "config.json").exists():
        require_run(folder)
    return replace(_read_pretrained(path), load=partial(_load_pretrained, path))


def _read_pretrained(path: str, end: int | None = None) -> Side:
    config, tokenizer = read_config(path), read_tokenizer(Pretrained(path=path), pads=False)
    side = _pretrained_side(tokenizer, config, tokenizer.eos_token_id if end is None else end)
    return replace(side, ends=tuple(dict.fromkeys((*side.ends, *declared_ends(path, config)))))


def _pretrained_side(tokenizer: Any, config: Any, end: int | None) -> Side:
    special = sorted(special_ids(tokenizer))
    roles = {f"{role} symbol": getattr(tokenizer, f"{role}_token", None) for role in _ROLES}
    return Side(
        kind="an encoder-decoder over records" if config.is_encoder_decoder else "a causal model over records",
        tables={"vocabulary": {number: symbol for symbol, number in tokenizer.get_vocab().items()}},
        width=config.get_text_config(decoder=True).vocab_size,
        start=getattr(config, "decoder_start_token_id", None) if config.is_encoder_decoder else None,
        end=end,
        ends=tuple(number for number in (end, tokenizer.eos_token_id) if number is not None),
        pad=None if tokenizer.pad_token_id is None else (tokenizer.pad_token_id, tokenizer.pad_token),
        special={"special symbols": list(map(str, tokenizer.convert_ids_to_tokens(special))), **roles},
        template=tokenizer.chat_template,
    )


def _described_side(description: Mapping[str, Any]) -> Side:
    left = {name: value for name, value in description.items() if name not in _OTHER}
    tables = {name: dict(enumerate(map(str, value))) for name, value in left.items() if isinstance(value, list)}
    facts = {name: value for name, value in left.items() if name not in tables}
    end = description.get("end")
    return Side(f"a model over {description['kind']}", tables, facts, end=end, ends=() if end is None else (end,))


def _load_pretrained(path: str) -> LoadedRun:
    settings = Pretrained(path=path, dtype="auto")
    model: Any = load_adapted(settings)
    causal = not model.inner.config.is_encoder_decoder
    tokenizer = read_tokenizer(settings, pads=False)
    codec = RecordCodec(tokenizer, "completions" if causal else "pairs", causal=causal, model=model)
    return LoadedRun(Path(path), model, RecordTask, codec, {}, None)


def findings(pair: Pair) -> Report:
    """What all comparisons of two sides found; those after the first say nothing of models of another kind."""
    first = Check(_kind)(pair)
    if first.status == "refused":
        return Report((first,))
    return Report((first, *(Check(each)(pair) for each in (_symbols, _width, _start, _end, _padding, _special, _chat))))


def _kind(pair: Pair) -> Verdict:
    """Both read the same kind of batch, of symbols."""
    student, teacher = pair
    if student.kind != teacher.kind:
        return (
            f"the student is {student.kind} and the teacher {teacher.kind}: gkd feeds both one batch; take a teacher "
            "of the student's kind, trained on the same kind of data"
        )
    if student.kind in ("a model over series", "a model over batches of values"):
        return "their targets are values: gkd compares distributions of symbols; use another method"
    return None


def _symbols(pair: Pair) -> Verdict:
    """Each id is the same symbol in both."""
    student, teacher = pair
    problems = [
        f"{name} {_differing(*(side.tables.get(name, {}) for side in pair))}"
        for name in dict.fromkeys((*student.tables, *teacher.tables))
        if student.tables.get(name) != teacher.tables.get(name)
    ]
    names = dict.fromkeys((*student.facts, *teacher.facts))
    other = [name for name in names if student.facts.get(name) != teacher.facts.get(name)]
    problems += [f"{listed(other)} differ, which give the symbols their meaning"] if other else []
    if not problems and not student.tables:
        return "not applicable", "the data name no symbols: that the ids mean the same is yours to know"
    remedy = "train the teacher on the same data, or take one with the same tokenizer"
    return f"{'; '.join(problems)}: gkd compares distributions over the same symbols; {remedy}" if problems else None


def _differing(student: Mapping[int, str], teacher: Mapping[int, str]) -> str:
    """How many ids differ, and the first of them."""
    ids = sorted(number for number in student.keys() | teacher.keys() if student.get(number) != teacher.get(number))
    first = "; ".join(f"{n} is {_named(student, n)} and {_named(teacher, n)}" for n in ids[:_FIRST])
    sizes = f"{len(student):,} symbols of the student, {len(teacher):,} of the teacher"
    return f"({sizes}): {len(ids):,} ids differ, first {first}"


def _named(table: Mapping[int, str], number: int) -> str:
    return display(table[number], 40) if number in table else "none"


def _width(pair: Pair) -> Verdict:
    """Both predict the same number of ids."""
    student, teacher = pair
    if student.width is None or teacher.width is None:
        return "not applicable", "it follows from the symbols"
    size = 1 + max(student.tables["vocabulary"])
    if student.width != teacher.width:
        return width_problem(student.width, teacher.width, size if student.tables == teacher.tables else None)
    if student.width >= size:
        return None
    return f"both predict {student.width} ids, and the tokenizer has {size}: each needs the one it was trained with"


def _start(pair: Pair) -> Verdict:
    """A decoder begins with the same symbol in both."""
    student, teacher = pair
    if student.start is None or teacher.start is None:
        return "not applicable", "no decoder with a start symbol of its own"
    if student.start == teacher.start:
        return None
    return (
        f"the student's decoder begins with {student.symbol(student.start)} and the teacher's with "
        f"{teacher.symbol(teacher.start)}, and the teacher reads the student's; set decoder_start_token_id of one to "
        "that of the other, if it was trained so"
    )


def _end(pair: Pair) -> Verdict:
    """What ends the student's rows ends the teacher's."""
    student, teacher = pair
    if student.end is None or not teacher.ends:
        return "not applicable", "one of them has no end symbol of its own"
    if student.end in teacher.ends:
        return None
    return (
        f"the student's rows end with {student.symbol(student.end)}, and the teacher's with "
        f"{' or '.join(map(teacher.symbol, teacher.ends))}, so it would teach the student not to stop; give the "
        f"student the teacher's end symbol, or, if the teacher does end so, set eos_token_id = "
        f"{[*teacher.ends, student.end]} in its generation_config.json"
    )


def _padding(pair: Pair) -> Verdict:
    """Both pad with the same symbol, or with none; padding is masked and carries no loss."""
    student, teacher = pair
    if student.pad == teacher.pad:
        return None
    one, other = ("nothing" if side.pad is None else side.symbol(side.pad[0]) for side in pair)
    return "ok", f"the student pads with {one} and the teacher with {other}; padding is masked and carries no loss"


def _special(pair: Pair) -> Verdict:
    """Both have the same special symbols."""
    student, teacher = pair
    names = [name for name in student.special if student.special[name] != teacher.special.get(name)]
    if not names:
        return None
    parts = [f"{name} {_value(student.special[name])} and {_value(teacher.special.get(name))}" for name in names]
    return (
        "warning",
        f"student and teacher: {'; '.join(parts)}; the teacher reads rows that begin and end as the student's",
    )


def _value(value: Any) -> str:
    return "none" if not value else listed(value) if isinstance(value, list) else display(str(value), 40)


def _chat(pair: Pair) -> Verdict:
    """Both write chats by the same template."""
    student, teacher = pair
    if student.template == teacher.template or student.chats is False:
        return None
    held = {(False, True): "the student has none", (True, False): "the teacher has none"}
    how = held.get((student.template is not None, teacher.template is not None), "they differ")
    return "warning", (
        f"chat templates: {how}; in a recipe both read chats by the student's: write the teacher's into a file and "
        "name it, model.chat_template"
    )


def _distance(pair: Pair) -> Verdict:
    """Gkd runs with them."""
    student, teacher = (side.load() for side in pair)
    method = GKD(1.0, teacher=Teacher(teacher.model, follows=True))  # whose ends are compared above
    with torch.no_grad():
        outcome = method.run(student.model, trial_batch(student), 0)
    found = round(float(outcome.total / outcome.count), 6)  # of the same model it is rounding alone
    same = ": they predict the same, and the student learns nothing" if found == 0 else ""
    near = outcome.report["support_common"] / outcome.report["support_of"]  # pyright: ignore[reportOperatorIssue]
    return "ok" if found else "warning", (
        f"gkd runs: {found:.4g} nats a position (beta = 0.5) on a small made-up batch, {100 * near:.0f} % of the "
        f"likeliest symbols in common{same}"
    )
