"""Arguments of settings and functions: field rules, and help for unknown, superfluous or missing ones."""

from __future__ import annotations

import difflib
import hashlib
import inspect
import re
import sys
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from functools import cache, partial
from typing import Any, Self, cast

from freerun.errors import UserError, display, refuse, visible, whole

_LARGEST = sys.float_info.max
_WHOLE = 2**63
"""Above every whole number that a tensor can hold."""


class ArgumentError(UserError, TypeError):
    """A call with arguments that are unknown, too many or missing."""


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word most like this one, if any is.

    >>> nearest("bath_size", ["batch_size", "updates"])
    'batch_size'
    """
    close = difflib.get_close_matches(word.lower(), list(known), n=1, cutoff=0.6)
    return close[0] if close else None


def is_number(value: object) -> bool:
    """A finite int or float; not a bool, not a string."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST


MOST = 2**53
"""The largest whole number that a float holds exactly; no count of anything is larger."""


@dataclass(frozen=True)
class Range:
    """The rule of a number: its kind and its bounds.

    Args:
        low: the least value; None: there is none.
        high: the largest value; None: there is none, or of whole numbers ``MOST``.
        ends: "[" or "(", and "]" or ")": whether the bounds themselves are allowed.
        whole: True if only whole numbers are allowed.
        optional: True if None is allowed.
        hint: what to do instead, for the end of the message.

    >>> Range(1, whole=True).problems(size=8, layers=0, heads=2.5)
    ['layers must be at least 1; got 0', 'heads must be a whole number of at least 1; got 2.5']
    >>> Range(0, 1, "[)").problems(dropout=1.0) + Range(0, ends="(]", hint="use 'greedy'").problems(temperature=0)
    ['dropout must lie in [0, 1); got 1.0', "temperature must be above 0; got 0: use 'greedy'"]
    """

    low: float | None = None
    high: float | None = None
    ends: str = "[]"
    whole: bool = False
    optional: bool = False
    hint: str = ""

    def problem(self, name: str, value: Any) -> str | None:
        """Return what is wrong with a value; None if nothing is."""
        if value is None and self.optional:
            return None
        low: Any = self.low
        high: Any = MOST if self.high is None and self.whole else self.high
        if not self.fits_kind(value):
            kind = "a whole number" if self.whole else "a finite number" if low is high is None else "a number"
            words = self._words(low, self.high)
            rule = f"{kind} of {words}" if words.startswith("at") else f"{kind} {words}".rstrip()
        elif low is not None and not (value >= low if self.ends[0] == "[" else value > low):
            rule = self._words(low, None if self.whole else high)
        elif high is not None and not (value <= high if self.ends[1] == "]" else value < high):
            rule = self._words(None if self.high is None else low, high)
        else:
            return None
        verb = "lie" if rule.startswith("in ") else "be"
        text = f"{name} must {verb} {rule}{', or left out' if self.optional else ''}; got {display(value)}"
        return f"{text}: {self.hint}" if self.hint else text

    def problems(self, **values: object) -> list[str]:
        """Return what is wrong with arguments, a line each."""
        return [problem for name, value in values.items() if (problem := self.problem(name, value))]

    def check(self, **values: object) -> None:
        """Raise UserError for arguments that break the rule, all at once."""
        refuse(self.problems(**values))

    def fits_kind(self, value: Any) -> bool:
        """Return True if a value is a number of the rule's kind, in its bounds or not."""
        return (whole(value) is not None) if self.whole else is_number(value)

    def _words(self, low: float | None, high: float | None) -> str:
        if low is None or high is None:
            words = ("at least", "above") if high is None else ("at most", "below")
            end = self.ends[0] == "[" if high is None else self.ends[1] == "]"
            bound = low if high is None else high
            return "" if bound is None else f"{words[0] if end else words[1]} {bound:,}".replace(",", "")
        return f"from {low} to {high}" if self.whole else f"in {self.ends[0]}{low:g}, {high:g}{self.ends[1]}"


@dataclass(frozen=True)
class OneOf:
    """The rule of a word: which ones there are.

    >>> OneOf(("past", "sequence")).problem("layout", "flat")
    "layout must be one of past, sequence; got 'flat'"
    """

    words: tuple[str, ...]
    optional: bool = False
    hint: str = ""

    def problem(self, name: str, value: Any) -> str | None:
        """Return what is wrong with a value; None if nothing is."""
        if (value is None and self.optional) or (isinstance(value, str) and value in self.words):
            return None
        text = f"{name} must be one of {', '.join(self.words)}{', or left out' if self.optional else ''}; got "
        return f"{text}{display(value)}{': ' if self.hint else ''}{self.hint}"

    def check(self, **values: object) -> None:
        """Raise UserError for arguments that break the rule, all at once."""
        refuse([problem for name, value in values.items() if (problem := self.problem(name, value))])


COUNT = Range(1, whole=True)
"""The rule of a count: a whole number of at least 1."""


def rule_field(rule: Range | OneOf, default: Any = MISSING, *, semantic: bool = True) -> Any:
    """A dataclass field with a rule, which ``field_problems`` and recipes hold its values against.

    The annotation holds the rest: ``int`` allows whole numbers only, ``| None`` None, ``tuple[...]`` holds the rule for
    every entry.

    Args:
        rule: of the values.
        default: MISSING: the field is required.
        semantic: False: it changes no number of a run, and may be another one when the run goes on.
    """
    return field(default=default, metadata={"rule": rule, "semantic": semantic})


def at_least(low: float, default: Any = MISSING, *, hint: str = "", semantic: bool = True) -> Any:
    """A field of numbers from ``low`` on, see ``rule_field``."""
    return rule_field(Range(low, hint=hint), default, semantic=semantic)


def above(low: float, default: Any = MISSING, *, hint: str = "", semantic: bool = True) -> Any:
    """A field of numbers above ``low``, see ``rule_field``."""
    return rule_field(Range(low, ends="(]", hint=hint), default, semantic=semantic)


def between(
    low: float, high: float, default: Any = MISSING, *, ends: str = "[]", hint: str = "", semantic: bool = True
) -> Any:
    """A field of numbers from ``low`` to ``high``, see ``rule_field``; ``ends="[)"`` leaves the upper bound out."""
    return rule_field(Range(low, high, ends, hint=hint), default, semantic=semantic)


def finite(default: Any = MISSING, *, hint: str = "", semantic: bool = True) -> Any:
    """A field of finite numbers, see ``rule_field``."""
    return rule_field(Range(hint=hint), default, semantic=semantic)


def one_of(words: Iterable[str], default: Any = MISSING, *, hint: str = "", semantic: bool = True) -> Any:
    """A field of one of some words, see ``rule_field``."""
    return rule_field(OneOf(tuple(words), hint=hint), default, semantic=semantic)


@cache
def field_rules(cls: Any) -> Mapping[str, Range | OneOf]:
    """The rules of a dataclass's fields by name, completed by their annotations."""
    rules: dict[str, Range | OneOf] = {}
    for each in fields(cls):
        rule, kind = each.metadata.get("rule"), str(each.type)
        if isinstance(rule, Range):
            rule = replace(rule, whole="int" in kind and "float" not in kind)
        if rule is not None:
            rules[each.name] = replace(rule, optional=rule.optional or "None" in kind)
    return rules


def _entries(settings: Any, name: str) -> Sequence[Any]:
    """The values of a field that its rule is about: of a tuple each, else the value itself."""
    value, kind = getattr(settings, name), str(type(settings).__dataclass_fields__[name].type)
    several = isinstance(value, tuple | list) and ("tuple" in kind or "Sequence" in kind)
    return cast(Sequence[Any], value) if several else (value,)


def field_problems(settings: Any) -> list[str]:
    """What is wrong with the fields of a dataclass that have a rule, a line each."""
    problems: list[str] = []
    for name, rule in field_rules(type(settings)).items():
        entries = _entries(settings, name)
        problems += [problem for entry in entries if (problem := rule.problem(name, entry))]
    return problems


def renamed(home: str, name: str, names: Mapping[str, str]) -> Exception:
    """The error for a name that a module has not, for its ``__getattr__``: a renamed one is answered with the new name.

    >>> renamed("freerun.metrics", "error_by_lead", {"error_by_lead": "rmse_by_horizon"})
    UserError('freerun.metrics.error_by_lead is now freerun.metrics.rmse_by_horizon')
    """
    if name not in names:
        return AttributeError(f"module {home!r} has no attribute {name!r}")
    new = names[name]
    return UserError(f"{home}.{name} is now {new if '.' in new else f'{home}.{new}'}")


_P_OWN = "teacher_forcing_ratio is P(gold): for a probability p of feeding the model's own output it is 1 - p"


# what an argument is called here, and elsewhere
_CALLED: Mapping[str, str] = {
    "teacher_forcing_ratio": "sampling_probability sampling_prob sampling_rate scheduled_sampling_ratio ss_ratio "
    "ss_prob epsilon eps p prob probability ratio tf_ratio tf teacher_forcing teacher_forcing_prob schedule",
    "gate": "coin mode level granularity",
    "draw": "sampler sampling decoding strategy",
    "tolerance": "enough tol",
    "objective": "loss loss_fn criterion",
    "vocabulary": "vocab vocab_size num_tokens",
    "std": "sigma scale noise_std",
    "steps": "num_steps n_steps total_steps max_steps decay_steps duration",
    "start": "begin initial initial_value init start_value",
    "end": "final stop final_value end_value eos eos_id eos_token_id end_id",
    "floor": "minimum min min_value",
    "k": "gamma decay decay_rate",
    "length": "max_length max_len max_new_tokens",
    "beams": "num_beams beam_size beam_width",
    "n_best": "num_return_sequences nbest",
    "key": "seed generator rng",
    "step": "global_step iteration epoch update it t",
    "targets": "labels y trg tgt gold",
    "history": "decoder_inputs decoder_input_ids inputs input_ids",
    "mask": "padding_mask pad_mask attention_mask tgt_mask",
    "context": "source src x encoder_inputs",
    "end_symbol": "end",
    "num_samples": "n_samples samples",
    "long_series": "long",
    "sample_windows": "fans",
    "on_progress": "watch callback progress",
}


_OTHER_NAMES = {word: name for name, words in _CALLED.items() for word in words.split()}
_FROM_CALL = "randomness comes with the call: method(model, batch, step=step, key=0)"
_FROM_DRAW = "it belongs to the draw: draw=fr.draws.sample({}=...)"
_INSTEAD: Mapping[str, str] = {
    **dict.fromkeys(("temperature", "top_k", "top_p"), _FROM_DRAW),
    **dict.fromkeys(("seed", "generator", "key", "rng"), _FROM_CALL),
    "step": "the step is an argument of the call: method(model, batch, step=step)",
    "label_smoothing": "it belongs to the objective: objective=fr.objectives.cross_entropy(label_smoothing=...)",
    "do_sample": "use draw='sample', or 'greedy'",
    "passes": "k parallel passes are engine=k, or fr.parallel(..., passes=k)",
    "reduction": "an objective gives a total and a count, and the loss is their quotient",
    "ignore_index": "leave positions out with the batch's mask",
    "teacher_forcing_ratio": "it belongs to the method: fr.scheduled_sampling(teacher_forcing_ratio)",
    "pad_id": "leave padding out with the batch's mask",
}


def unknown_argument(called: str, name: str, known: Sequence[str]) -> str:
    """The problem with an argument that a class or function does not have, and what was meant.

    >>> unknown_argument("linear", "stpes", ["start", "end", "steps"])
    "linear has no argument 'stpes': did you mean steps?"
    """
    meant = _OTHER_NAMES.get(name)
    if meant not in known and name != "do_sample":  # which is no misspelt num_samples
        meant = nearest(name, known) or next((each for each in known if each.endswith(f"_{name}")), None)
    if meant == "teacher_forcing_ratio" and name in _OTHER_NAMES:
        how = _P_OWN
    elif meant in known:
        how = f"did you mean {meant}?"
    else:
        how = _INSTEAD.get(name, f"it takes {', '.join(known) or 'none'}").replace("{}", name)
    return f"{called} has no argument {name!r}: {how}"


def refuse_unknown(called: str, unknown: Iterable[str], known: Sequence[str], meant: Mapping[str, str]) -> None:
    """Refuse arguments that a function does not have; ``meant``: what to do instead, for some.

    >>> refuse_unknown("fit", ["lr"], ["learning_rate"], {"lr": "did you mean learning_rate?"})
    Traceback (most recent call last):
    freerun.errors.UserError: fit has no argument 'lr': did you mean learning_rate?
    """
    problems = [
        f"{called} has no argument {name!r}: {meant[name]}" if name in meant else unknown_argument(called, name, known)
        for name in unknown
    ]
    refuse(problems)


@cache
def _takes(cls: Any) -> tuple[tuple[str, ...], tuple[str, ...], frozenset[str]]:
    """Arguments by position, all of them, and those without a default."""
    taken = [each for each in fields(cls) if each.init]
    required = {each.name for each in taken if each.default is MISSING and each.default_factory is MISSING}
    # what all of a family have comes last
    own = sorted(taken, key=lambda each: (each.kw_only, each.name in ("floor", "unit", "horizon", "loss_on", "target")))
    return tuple(e.name for e in own if not e.kw_only), tuple(e.name for e in own), frozenset(required)


class Arguments:
    """The base of settings (dataclasses): arguments unknown, too many, missing or out of range are a UserError.

    >>> @dataclass(frozen=True)
    ... class Toy(Arguments):
    ...     size: int = at_least(1, 8)
    ...     dropout: float = between(0, 1, 0.0, ends="[)")
    >>> Toy(size=0, dropout=1.0)
    Traceback (most recent call last):
    ...
    freerun.errors.UserError: size must be at least 1; got 0
    dropout must lie in [0, 1); got 1.0
    """

    def __new__(cls, *values: Any, **named: Any) -> Self:
        """An object still without its fields, if the arguments are those of the class."""
        positional, known, required = _takes(cls)
        if (
            len(values) > len(positional)
            or named.keys() - set(known)
            or required - set(positional[: len(values)]) - named.keys()
        ):
            raise ArgumentError(_argument_problems(cls, values, named))
        for name, value in (*zip(positional, values, strict=False), *named.items()):
            if not (value is None or isinstance(value, float | str)) and (problem := _odd(cls, name, value)):
                raise ArgumentError(problem)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        """Raise UserError for fields that break their rules or do not go together, all at once."""
        problems, rules = field_problems(self), field_rules(type(self))
        numbers = [(rule, each) for name, rule in rules.items() for each in _entries(self, name)]
        # what goes together is judged of numbers only
        if all(isinstance(rule, OneOf) or each is None or rule.fits_kind(each) for rule, each in numbers):
            problems += self.problems()
        refuse(problems)

    def problems(self) -> Iterable[str]:
        """Return which fields do not go together, a line each."""
        return ()

    def __reduce__(self) -> Any:
        return _restored, (type(self), self.__dict__)


def _odd(cls: Any, name: str, value: Any) -> str | None:
    """What no setting can be: a number that no tensor holds, many numbers in place of one, True in place of a count."""
    kind = str(cls.__dataclass_fields__[name].type)
    if isinstance(value, int) and abs(value) >= _WHOLE:
        return f"{name} must lie below 2**63 in size; got a number of {value.bit_length()} bits"
    shape: Any = getattr(value, "shape", ()) if hasattr(value, "dtype") else ()
    if shape != () and not any(word in kind for word in ("Tensor", "Any", "tuple", "Sequence")):
        return f"{name} must be one {'True or False' if kind == 'bool' else 'value'}; got {tuple(shape)} of them"
    if kind == "bool" and not isinstance(value, bool):
        return f"{name} must be True or False; got {str(value)[:40]}"
    if kind == "int" and isinstance(value, bool):
        return f"{name} must be a whole number; got {value}"
    return None


def _restored(cls: Any, state: Mapping[str, Any]) -> Any:
    made = object.__new__(cls)
    made.__dict__.update(state)
    return made


def _argument_problems(cls: Any, values: Sequence[Any], named: Mapping[str, Any]) -> list[str]:
    positional, known, required = _takes(cls)
    called = getattr(cls, "name", None) or cls.__name__
    problems: list[str] = []
    if len(values) > len(positional):
        left = [name for name in known if name not in named]
        meant = {**dict(zip(left, values, strict=False)), **{name: named[name] for name in named if name in known}}
        call = ", ".join(f"{name}={str(meant[name])[:30]}" for name in known if name in meant)
        allowed = (
            f"{len(positional)} arguments by position ({', '.join(positional)})"
            if positional
            else "its arguments by name"
        )
        problems.append(f"{called} takes {allowed}; got {len(values)} by position: write {called}({call})")
    problems += [unknown_argument(called, name, known) for name in named if name not in known]
    left_out = [
        name for name in known if name in required and name not in positional[: len(values)] and name not in named
    ]
    # what was written under another name, or without one, is not missing as well
    if left_out and not problems:
        problems.append(f"{called} needs {', '.join(left_out)}: {called}({', '.join(f'{n}=...' for n in left_out)})")
    return problems


def refused(function: Any, count: int) -> str:
    """Why something cannot be called with so many arguments as a part of ours, in words to append; "" where it can."""
    if isinstance(function, type):
        return f": that is a class; give an object of it, {function.__name__}()"
    home = getattr(function if hasattr(function, "__qualname__") else type(function), "__module__", "") or ""
    if home.startswith("torch.") or inspect.isbuiltin(function):
        return (
            ": that is PyTorch's own, which knows no batch; of a loss make (outputs, batch) -> (total, count), the sum "
            "over outputs[batch.mask] and their number"
        )
    if not callable(function):
        return ""
    # a module may be called with anything, and its forward may not
    called: Any = getattr(function, "forward", function)
    try:
        inspect.signature(called).bind(*[None] * count)
    except ValueError:  # no signature to be had
        return ""
    except TypeError as error:
        return f": it cannot be called with {count} arguments ({error})"
    return ""


_LINE, _PART = 240, 60


def lasting(text: str) -> str:
    """A repr without memory addresses: the same object has another one in another process.

    >>> lasting("dagger(expert=<function expert at 0x7f3c5c1a2b60>)")
    'dagger(expert=<function expert>)'
    """
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)


def code_digest(function: Any) -> str | None:
    """The beginning of a hash of the text of a function, or of an object's class and repr; None where there is none.

    What it calls or closes over has no part, and what freerun defines has none: another version may have other text.

    >>> code_digest(len) is None
    True
    """
    if isinstance(function, partial):
        text = f"{code_digest(function.func)} {lasting(repr(function))}"
        return hashlib.sha256(text.encode()).hexdigest()[:8]
    routine = inspect.isroutine(function)
    own = function if routine else type(function)
    if str(own.__module__).partition(".")[0] == __name__.partition(".")[0]:
        return None
    try:
        text = inspect.getsource(own)
    except (OSError, TypeError):  # typed at a prompt, or no Python
        code = getattr(own, "__code__", None)
        if code is None:
            return None
        text = f"{code.co_code.hex()} {lasting(repr(code.co_consts))}"
    return hashlib.sha256((text if routine else text + lasting(repr(function))).encode()).hexdigest()[:8]


def brief(self: Any) -> str:
    """A ``__repr__``: the class, and each public field that is not its default, in at most 240 characters.

    >>> class Words:
    ...     __repr__ = brief
    ...     def __init__(self):
    ...         self.words, self.longest, self.name = ["a"] * 1000, 7, "news"
    >>> Words()
    Words(words=1,000 items, longest=7, name='news')
    """
    parts = ", ".join(f"{name}={_part(value)}" for name, value in _fields(self) if not name.startswith("_"))
    return f"{type(self).__name__}({_cut(parts, _LINE)})"


def _fields(self: Any) -> list[tuple[str, Any]]:
    if not is_dataclass(self):
        return list(vars(self).items())
    # what is computed when it is read is not computed for this
    held = vars(self)
    pairs = ((f, held[f.name] if f.name in held else getattr(self, f.name)) for f in fields(self) if f.repr)
    return [(each.name, value) for each, value in pairs if each.default is MISSING or each.default is not value]


def _part(value: Any) -> str:
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple) and hasattr(value, "dtype"):
        return f"{tuple(shape)} {str(value.dtype).removeprefix('torch.')}" if shape else f"{value.item():.4g}"
    if isinstance(value, str):
        return _cut(visible(repr(value)), _PART) if len(value) <= 4 * _PART else f"{len(value):,} characters"
    if isinstance(value, float):
        text = repr(value)
        return text if len(text) <= 8 else f"{value:.6g}"
    if isinstance(value, Mapping) and len(value) <= 4:
        pairs = cast(Mapping[Any, Any], value).items()
        return _cut(f"{{{', '.join(f'{name}: {_part(part)}' for name, part in pairs)}}}", 2 * _PART)
    if isinstance(value, list | tuple) and len(value) <= 4:
        return _cut(f"({', '.join(map(_part, cast(list[Any], value)))})", _PART)
    if isinstance(value, Sized):
        name = "items" if isinstance(value, list | tuple | Mapping) else f"of {type(value).__name__}"
        return f"{len(value):,} {name}"
    return _cut(visible(repr(value)), 2 * _PART)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 3]}..."
