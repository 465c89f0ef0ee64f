"""What a training run may be told: one frozen record, checked as a whole."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from freerun.errors import UserError

OPTIMIZERS = ("adamw", "adam", "sgd")
DECAYS = ("constant", "linear", "cosine", "inverse_sqrt")
AMP = ("no", "bf16")
PARALLEL = ("ddp", "fsdp")
DEVICES = ("given", "cpu", "cuda")


def _free(default: Any) -> Any:
    """A setting that changes no number of a run but by rounding: it may be another one when the run goes on."""
    return field(default=default, metadata={"semantic": False})


@dataclass(frozen=True)
class TrainSettings:
    """How long, how fast and on what a model is trained.

    Args:
        updates: optimizer steps of the whole run.
        batch_size: examples of one update, all micro-batches (and ranks) together.
        accumulate: micro-batches an update is cut into: less memory, the same update.
        optimizer: ``adamw``, ``adam`` or ``sgd`` (momentum 0.9).
        lr: learning rate after the warm-up.
        weight_decay: on tensors of two and more dimensions only.
        warmup: updates over which the rate rises linearly from lr / warmup.
        decay: ``constant``, ``linear`` or ``cosine`` to 0 at ``updates``, or ``inverse_sqrt``.
        clip: largest gradient norm; 0 is no clipping.
        ema: decay of the exponential moving average of the weights, which is then what is evaluated and
            saved; 0 is none.
        amp: ``no``, or ``bf16`` autocast.
        bucket: put examples of like length into one batch.
        threads: threads of PyTorch on the CPU.
        evaluate_every: updates between two evaluations on dev (one more follows the last update).
        evaluate_words: dev items used while training (None: all); the task reads it.
        patience: evaluations without a better score before training stops early (None: never).
        select: dev score by which the best weights are chosen: a free-running metric (``per``, or in full
            ``free_running_per``), or a ``teacher_forced_`` one.
        save_every: updates between two checkpoints.
        keep: checkpoints kept.
        seed: of batches, dropout and the method's coins and noise.
        tensorboard: also write TensorBoard files (needs the extra ``tensorboard``).
        parallel: what several processes keep: ``ddp`` all of weights, gradients and optimizer state in each, ``fsdp`` a
            share of them between the steps. One process ignores it.
        device: ``cpu``, ``cuda`` (each process of a machine takes a GPU of its own), or ``given``: where the model is,
            which a recipe builds on the processor.
        rank_timeout: seconds that one of several processes may stand still before all end (exit code 7). Waiting for a
            long evaluation is not standing still.

    Raises:
        UserError: values out of range; all problems at once.

    >>> TrainSettings(updates=10, warmup=2).batch_size
    64
    """

    updates: int = 1000
    batch_size: int = 64
    accumulate: int = 1
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.0
    warmup: int = 0
    decay: Literal["constant", "linear", "cosine", "inverse_sqrt"] = "constant"
    clip: float = 1.0
    ema: float = 0.0
    amp: Literal["no", "bf16"] = "no"
    bucket: bool = True
    threads: int = 1
    evaluate_every: int = 500
    evaluate_words: int | None = None
    patience: int | None = None
    select: str = "per"
    save_every: int = _free(500)
    keep: int = _free(2)
    seed: int = 0
    tensorboard: bool = _free(False)
    parallel: Literal["ddp", "fsdp"] = _free("ddp")
    device: Literal["given", "cpu", "cuda"] = _free("given")
    rank_timeout: int = _free(120)

    def __post_init__(self) -> None:
        problems = _type_problems(self) or _range_problems(self)
        if problems:
            raise UserError(problems)


_WHOLE = {"updates", "batch_size", "accumulate", "threads", "evaluate_every", "save_every", "keep", "rank_timeout"}
_LARGEST = 2**53
_MOST = {"threads": 1024, "updates": 99_999_999}  # the name of a checkpoint has eight digits
_OPTIONAL = {"evaluate_words", "patience"}
_SMALLEST = 1.2e-38
_REAL = {"lr", "weight_decay", "clip", "ema"}
_WORDS = {"optimizer": OPTIMIZERS, "decay": DECAYS, "amp": AMP, "parallel": PARALLEL, "device": DEVICES}


def _type_problems(settings: TrainSettings) -> list[str]:
    problems: list[str] = []
    for each in fields(settings):
        value: Any = getattr(settings, each.name)
        if each.name in _WORDS or each.name == "select":
            kind, right = "a word", isinstance(value, str)
        elif each.name in _REAL:
            kind, right = "a number", isinstance(value, int | float) and not isinstance(value, bool)
        elif isinstance(each.default, bool):
            kind, right = "true or false", isinstance(value, bool)
        else:
            kind, right = "a whole number", isinstance(value, int) and not isinstance(value, bool)
            right = right or (each.name in _OPTIONAL and value is None)
        if not right:
            problems.append(f"{each.name} must be {kind}; got {value!r}")
    return problems


def _range_problems(settings: TrainSettings) -> list[str]:
    problems: list[str] = []
    for name in (*sorted(_WHOLE), *sorted(_OPTIONAL)):
        value = getattr(settings, name)
        most = _MOST.get(name, _LARGEST)
        if value is not None and not 1 <= value <= most:
            bound = "at least 1" if value < 1 else f"at most {most}"
            problems.append(f"{name} must be {bound}; got {value}")
    for name, allowed in _WORDS.items():
        if getattr(settings, name) not in allowed:
            problems.append(f"{name} must be one of {', '.join(allowed)}; got {getattr(settings, name)!r}")
    if not 0 < settings.lr < float("inf"):
        problems.append(f"lr must be above 0 and finite; got {settings.lr}")
    tiny = [name for name in sorted(_REAL) if 0 < getattr(settings, name) < _SMALLEST]
    problems += [f"{name} must be at least {_SMALLEST:g}, as float32 holds no less" for name in tiny]
    for name in ("weight_decay", "clip"):
        if not 0 <= getattr(settings, name) < float("inf"):
            problems.append(f"{name} must be 0 (off) or more; got {getattr(settings, name)}")
    if not 0 <= settings.ema < 1:
        problems.append(f"ema must be in [0, 1), for example 0.999, or 0 for none; got {settings.ema}")
    # beside a number that is wrong itself, what must not exceed it is not judged
    if settings.warmup < 0 or settings.warmup > settings.updates > 0:
        problems.append(f"warmup must be in 0..updates = 0..{settings.updates}; got {settings.warmup}")
    if settings.accumulate > settings.batch_size > 0:
        problems.append(
            f"accumulate cuts batch_size = {settings.batch_size} examples into micro-batches and can be at "
            f"most that; got {settings.accumulate}"
        )
    if not 0 <= settings.seed < 2**63:
        problems.append(f"seed must be 0 or more, and below 2**63; got {settings.seed}")
    return problems
