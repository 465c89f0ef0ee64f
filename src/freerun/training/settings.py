"""The settings of a training run, each with its rule: they are a recipe's ``[train]``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from freerun.arguments import Arguments, above, at_least, between, one_of

_SMALLEST = 1.2e-38
"""The least positive number that float32 holds."""


@dataclass(frozen=True)
class TrainSettings(Arguments):
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
        evaluate_items: dev items used while training (None: all); the task reads it.
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

    updates: int = between(1, 99_999_999, 1000)  # the name of a checkpoint has eight digits
    batch_size: int = at_least(1, 64)
    accumulate: int = at_least(1, 1)
    optimizer: Literal["adamw", "adam", "sgd"] = one_of(("adamw", "adam", "sgd"), "adamw")
    lr: float = above(0, 1e-3)
    weight_decay: float = at_least(0, 0.0)
    warmup: int = at_least(0, 0)
    decay: Literal["constant", "linear", "cosine", "inverse_sqrt"] = one_of(
        ("constant", "linear", "cosine", "inverse_sqrt"), "constant"
    )
    clip: float = at_least(0, 1.0)
    ema: float = between(0, 1, 0.0, ends="[)")
    amp: Literal["no", "bf16"] = one_of(("no", "bf16"), "no")
    bucket: bool = True
    threads: int = between(1, 1024, 1)
    evaluate_every: int = at_least(1, 500)
    evaluate_items: int | None = at_least(1, None)
    patience: int | None = at_least(1, None)
    select: str = "per"
    save_every: int = at_least(1, 500, semantic=False)
    keep: int = at_least(1, 2, semantic=False)
    seed: int = between(0, 2**63 - 1, 0)
    tensorboard: bool = field(default=False, metadata={"semantic": False})
    parallel: Literal["ddp", "fsdp"] = one_of(("ddp", "fsdp"), "ddp", semantic=False)
    device: Literal["given", "cpu", "cuda"] = one_of(("given", "cpu", "cuda"), "given", semantic=False)
    rank_timeout: int = at_least(1, 120, semantic=False)

    def problems(self) -> Iterable[str]:
        """Say which settings do not go together, a line each."""
        if not isinstance(self.select, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            yield f"select must be a word; got {self.select!r}"
        for name in ("lr", "weight_decay", "clip", "ema"):
            if 0 < getattr(self, name) < _SMALLEST:
                yield f"{name} must be at least {_SMALLEST:g}, as float32 holds no less"
        if self.warmup > self.updates:
            yield f"warmup must be in 0..updates = 0..{self.updates}; got {self.warmup}"
        if self.accumulate > self.batch_size:
            yield (
                f"accumulate cuts batch_size = {self.batch_size} examples into micro-batches and can be at most that; "
                f"got {self.accumulate}"
            )
