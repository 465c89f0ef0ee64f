"""Arguments of settings and functions: unknown, too many or missing ones are answered with what was meant."""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import MISSING, field, fields, is_dataclass
from functools import cache
from typing import Any, Self, cast

from freerun.errors import UserError, visible

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
    found = difflib.get_close_matches(word.lower(), list(known), n=1, cutoff=0.6)
    return found[0] if found else None


def is_number(value: object) -> bool:
    """A finite int or float; not a bool, not a string."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST


def count_problems(counts: Mapping[str, object]) -> list[str]:
    """The problems of arguments that must be whole numbers of at least 1.

    >>> count_problems({"size": 8, "layers": 0, "heads": 2.5})
    ['layers must be at least 1; got 0', 'heads must be a whole number of at least 1; got 2.5']
    """
    whole = {name: isinstance(count, int) and not isinstance(count, bool) for name, count in counts.items()}
    return [
        f"{name} must be {'' if whole[name] else 'a whole number of '}at least 1; got {count!r}"
        for name, count in counts.items()
        if not (isinstance(count, int) and whole[name] and count >= 1)
    ]


_P_OWN = "teacher_forcing_ratio is P(gold): for a probability p of feeding the model's own output it is 1 - p"


# what an argument is called here, and elsewhere
_CALLED: Mapping[str, str] = {
    "teacher_forcing_ratio": "sampling_probability sampling_prob sampling_rate scheduled_sampling_ratio ss_ratio "
    "ss_prob epsilon eps p prob probability ratio tf_ratio tf teacher_forcing teacher_forcing_prob schedule",
    "coin": "gate mode level granularity",
    "draw": "sampler sampling decoding strategy",
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
}


_OTHER_NAMES = {word: name for name, words in _CALLED.items() for word in words.split()}


_FROM_CALL = "randomness comes with the call: method(model, batch, step=step, key=0)"


_FROM_DRAW = "it belongs to the draw: draw=fr.draws.sample({}=...)"


_INSTEAD: Mapping[str, str] = {
    **dict.fromkeys(("temperature", "top_k", "top_p"), _FROM_DRAW),
    **dict.fromkeys(("seed", "generator", "key", "rng"), _FROM_CALL),
    "step": "the step is given at the call: method(model, batch, step=step)",
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
    if meant not in known:
        meant = nearest(name, known)
    if meant == "teacher_forcing_ratio" and name in _OTHER_NAMES:
        how = _P_OWN
    elif meant is not None:
        how = f"did you mean {meant}?"
    else:
        how = _INSTEAD.get(name, f"it takes {', '.join(known) or 'none'}").replace("{}", name)
    return f"{called} has no argument {name!r}: {how}"


@cache
def _takes(cls: Any) -> tuple[tuple[str, ...], tuple[str, ...], frozenset[str]]:
    """Arguments by position, all of them, and those that must be given."""
    given = [each for each in fields(cls) if each.init]
    required = {each.name for each in given if each.default is MISSING and each.default_factory is MISSING}
    # what all of a family have comes last
    own = sorted(given, key=lambda each: (each.kw_only, each.name in ("floor", "unit", "horizon", "loss_on")))
    return tuple(e.name for e in own if not e.kw_only), tuple(e.name for e in own), frozenset(required)


class Arguments:
    """The base of settings (dataclasses): arguments that are unknown, too many or missing are a UserError with help."""

    def __new__(cls, *given: Any, **named: Any) -> Self:
        """An object still without its fields, if the arguments are those of the class."""
        places, known, required = _takes(cls)
        if len(given) > len(places) or named.keys() - set(known) or required - set(places[: len(given)]) - named.keys():
            raise ArgumentError(_argument_problems(cls, given, named))
        for name, value in (*zip(places, given, strict=False), *named.items()):
            if not (value is None or isinstance(value, float | str)) and (problem := _odd(cls, name, value)):
                raise ArgumentError(problem)
        return super().__new__(cls)

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


def _argument_problems(cls: Any, given: Sequence[Any], named: Mapping[str, Any]) -> list[str]:
    places, known, required = _takes(cls)
    called = getattr(cls, "name", None) or cls.__name__
    problems: list[str] = []
    if len(given) > len(places):
        shown = ", ".join(f"{name}={str(value)[:30]}" for name, value in zip(known, given, strict=False))
        allowed = f"{len(places)} arguments by position ({', '.join(places)})" if places else "its arguments by name"
        problems.append(f"{called} takes {allowed}; got {len(given)} by position: write {called}({shown})")
    problems += [unknown_argument(called, name, known) for name in named if name not in known]
    left_out = [name for name in known if name in required and name not in places[: len(given)] and name not in named]
    # what was written under another name, or without one, is not missing as well
    if left_out and not problems:
        problems.append(f"{called} needs {', '.join(left_out)}: {called}({', '.join(f'{n}=...' for n in left_out)})")
    return problems


def refused(function: Any, places: int) -> str:
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
    try:
        inspect.signature(function).bind(*[None] * places)
    except ValueError:  # no signature to be had
        return ""
    except TypeError as error:
        return f": it cannot be called with {places} arguments ({error})"
    return ""


_LINE, _PART = 240, 60


def brief(self: Any) -> str:
    """A ``__repr__``: the class, and each public field that is not its default, in at most 240 characters.

    >>> class Words:
    ...     __repr__ = brief
    ...     def __init__(self):
    ...         self.words, self.longest, self.name = ["a"] * 1000, 7, "news"
    >>> Words()
    Words(words=1,000 items, longest=7, name='news')
    """
    shown = ", ".join(f"{name}={_part(value)}" for name, value in _fields(self) if not name.startswith("_"))
    return f"{type(self).__name__}({_cut(shown, _LINE)})"


def _fields(self: Any) -> list[tuple[str, Any]]:
    if not is_dataclass(self):
        return list(vars(self).items())
    pairs = ((each, getattr(self, each.name)) for each in fields(self) if each.repr)
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


MOST = 2**53
"""The largest whole number that a float holds exactly; no count of anything is larger."""


def number_field(default: Any, low: float | None = None, high: float | None = None, *, semantic: bool = True) -> Any:
    """A field of a section, with the range that a recipe may give it; a whole number is at most ``MOST``.

    ``semantic=False``: it changes no number of a run, and may be another one when the run goes on.
    """
    most = MOST if high is None and not isinstance(default, float) else high
    return field(default=default, metadata={"low": low, "high": most, "semantic": semantic})
