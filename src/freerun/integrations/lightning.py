"""freerun inside Lightning: a module, a callback, and the two steps for a module of one's own."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.nn import Module, Parameter
from torch.optim import Optimizer

from freerun.batch import Batch
from freerun.errors import CheckpointError, UserError
from freerun.keys import fold
from freerun.methods import METHODS, FreeRunning, Method, TeacherForcing
from freerun.methods.controls import refuse_modules, refuse_no_history, refuse_scores
from freerun.methods.rehearsal import rehearsal
from freerun.methods.report import StepStats
from freerun.metrics.outputs import correct, sequence_correct
from freerun.rollin import is_sharded, unwrap
from freerun.training.memory import try_longest
from freerun.types import Outcome, Step


def states() -> dict[str, Any]:
    """Return the states of PyTorch's, NumPy's and Python's global generators in this process.

    >>> before = states()
    >>> one = torch.rand(2), random.random()
    >>> restore(before)
    >>> two = torch.rand(2), random.random()
    >>> bool((one[0] == two[0]).all()), one[1] == two[1]
    (True, True)
    """
    name, words, *rest = np.random.get_state(legacy=True)
    cuda = {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_initialized() else {}
    numpy = (name, np.asarray(words).tolist(), *rest)
    return {"torch": torch.get_rng_state(), "python": random.getstate(), "numpy": numpy, **cuda}


def restore(saved: dict[str, Any]) -> None:
    """Put the generators of this process into the states that ``states`` returned."""
    torch.set_rng_state(saved["torch"].cpu())
    random.setstate(saved["python"])
    name, words, *rest = saved["numpy"]
    np.random.set_state((name, np.asarray(words, dtype=np.uint32), *rest))
    if "cuda" in saved and torch.cuda.is_available():
        torch.cuda.set_rng_state(saved["cuda"].cpu())


def of_all_processes(own: Any) -> list[Any]:
    """Return what every process has, by rank; every process has to call it.

    >>> of_all_processes("mine")
    ['mine']
    """
    if not (dist.is_available() and dist.is_initialized()):
        return [own]
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, own)
    return gathered


_SHARDED = ("FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy")


def training_step(module: LightningModule, model: Any, batch: Any, method: Method, *, seed: int = 0) -> Tensor:
    """Run one micro-batch of a method, for ``LightningModule.training_step`` to return.

    Schedules are evaluated at the optimizer step, ``trainer.global_step``. Randomness is a function of (seed, optimizer
    step, row, position), and rows are numbered over window and processes, so that nothing of it is saved and the way a
    global batch is cut makes no difference.

    Args:
        module: whose trainer has a ``FreerunCallback``.
        model: from Batch to outputs; a part of the module.
        batch: a ``freerun.Batch``.
        method: how it is trained.
        seed: of coins and draws.

    Returns:
        The mean loss; where a window has several micro-batches or processes, this one's share of the total in a unit
        near it, as the mean is known only at the window's end (then it is logged, as ``train_loss``).

    Raises:
        UserError: the batch is no ``Batch``; the callback is missing; the module optimises by hand; the method leaves
            its range within the run; a method that calls the model under a strategy that shards it.
    """
    callback = FreerunCallback.of(module)
    fresh, callback.fresh = callback.fresh, False
    if fresh:
        _refuse(module, method)
    micro_batch, step = callback.begin(_checked(batch, "training_step"), module.trainer, method)
    if fresh:
        _try_longest(module, model, micro_batch, method)
    outcome = method.run(model, micro_batch, step, fold(seed, "train"))
    return callback.add(outcome, micro_batch.size, module, method)


def validation_step(
    module: LightningModule, model: Any, batch: Any, method: Method, *, draw: Any = "auto", loader: int = 0
) -> None:
    """Score a batch on gold history and on the model's own; the callback logs the means at the end.

    Logged: ``teacher_forced_loss`` (gold history) and ``free_running_loss`` (own history: no gold is fed where the
    batch lets entries be replaced), both the method's objective against gold; for ids also ``..._token_accuracy``, and
    ``free_running_sequence_accuracy`` (greedily the same number on gold history: no measure of exposure bias). Entry is
    compared with entry, as far as gold goes.

    Args:
        module: whose trainer has a ``FreerunCallback``.
        model: from Batch to outputs.
        batch: a ``freerun.Batch``.
        method: whose objective is scored.
        draw: from a prediction to the entry fed back; ``"auto"`` is greedy for ids, and values as predicted.
        loader: ``dataloader_idx``, where there are several.

    Raises:
        UserError: the batch is no ``Batch``; the callback is missing.

    What it is not: a score of what the model outputs up to its own end symbol: for that use ``freerun.generate``.
    """
    callback = FreerunCallback.of(module)
    # rows are numbered on from those before
    batch = numbered(_checked(batch, "validation_step"), callback.scored, module.trainer)
    objective: Any = getattr(method, "objective", "auto")
    chosen = draw if draw != "auto" else "greedy" if batch.is_discrete else "point"
    with torch.no_grad():
        forced = TeacherForcing(objective=objective).run(model, batch, step=0)
        free = FreeRunning(draw=chosen, gradient="none", objective=objective).run(model, batch, step=0)
    callback.score({**_sums("teacher_forced", forced), **_sums("free_running", free)}, batch.size, loader)


def _sums(label: str, outcome: Outcome) -> dict[str, tuple[float, float]]:
    batch = outcome.fed
    sums = {f"{label}_loss": (float(outcome.total), float(outcome.count))}
    if batch.is_discrete:
        right = correct(outcome.outputs, batch.targets, batch.mask)
        sums[f"{label}_token_accuracy"] = float(right.sum()), float(batch.mask.sum())
    if batch.is_discrete and label == "free_running":
        counted = batch.mask.any(1)
        right = sequence_correct(outcome.outputs, batch.targets, batch.mask) & counted
        sums[f"{label}_sequence_accuracy"] = float(right.sum()), float(counted.sum())
    return sums


def _checked(batch: Any, where: str) -> Batch:
    if isinstance(batch, Batch):
        return batch
    keys = f" with the keys {', '.join(map(str, batch))}" if isinstance(batch, dict) else ""
    raise UserError(
        f"{where} got a {type(batch).__name__}{keys}, and a method needs a freerun.Batch: let the loader's collate_fn "
        "make one, or give FreerunModule(to_batch=...), which is called on the device; for a Hugging Face model m = "
        "hf.adapt(model): to_batch=lambda d: m.batch(**d)"
    )


def _refuse(module: LightningModule, method: Method) -> None:
    refuse_no_history(method)
    refuse_modules(method)
    refuse_scores(method)
    problems: list[str] = []
    strategy = type(module.trainer.strategy).__name__
    if not module.automatic_optimization:
        problems.append(
            "the module optimises by hand (automatic_optimization = False), where Lightning hides when a window "
            "ends: call method.run(model, batch, step, key) yourself and use its total and count"
        )
    if strategy in _SHARDED and getattr(method, "calls_model", True):
        problems.append(
            f"{method.name} calls the model as often as the data need it, which hangs under {strategy}, where every "
            "process must make the same calls: use strategy='ddp', or a method that does not call it (teacher_forcing, "
            "noise, word_dropout, raml, token-level unlikelihood)"
        )
    if problems:
        raise UserError(problems)
    steps = module.trainer.estimated_stepping_batches  # -1 or infinite where nobody knows
    if math.isfinite(steps) and steps >= 1:
        method.check(int(steps))


def _try_longest(module: LightningModule, model: Any, batch: Batch, method: Method) -> None:
    """Note what memory the longest horizon needs, on the first batch; refuse what is more, or what fails later on."""
    trainer = module.trainer
    steps, updates = trainer.estimated_stepping_batches, trainer.num_training_batches
    if math.isfinite(steps) and steps >= 1 and not is_sharded(model) and type(method) in METHODS.values():
        rehearsal(method, unwrap(model), batch, int(steps), 0)
    each = updates / trainer.accumulate_grad_batches if math.isfinite(updates) else math.nan
    rows = batch.size * trainer.accumulate_grad_batches * _dealt(trainer)[0]
    try_longest(
        method, model, lambda: batch, int(steps) if math.isfinite(steps) and steps >= 1 else None,
        at=lambda step: Step(step, sample=step * rows, epoch=step / each if each > 0 else None), note=rank_zero_info,
        lower="let the loader's batches be smaller and raise accumulate_grad_batches",
    )  # fmt: skip


def mean_over_processes(values: list[float], trainer: Trainer, module: LightningModule) -> list[float]:
    """Return each number's mean over all processes; with one process nothing is sent."""
    if trainer.world_size == 1:
        return values
    device: Any = module.device
    # float32 counts to 16,777,216, which is all that some accelerators have
    dtype = torch.float32 if device.type == "mps" else torch.float64
    summed: Any = trainer.strategy.reduce(torch.tensor(values, dtype=dtype, device=device), reduce_op="sum")
    return [value / trainer.world_size for value in summed.tolist()]


def numbered(batch: Batch, before: int, trainer: Trainer) -> Batch:
    """Return the batch with its rows' numbers in the global batch, as Lightning's sampler deals the data out."""
    if batch.rows is not None:
        return batch
    own: Tensor = torch.arange(before, before + batch.size, device=batch.history.device)
    replicas, rank = _dealt(trainer)
    return batch.made(rows=own * replicas + rank)


def _dealt(trainer: Trainer) -> tuple[int, int]:
    """Return over how many processes the data are dealt out, and which one this is."""
    dealt: Mapping[str, Any] = trainer.distributed_sampler_kwargs or {"num_replicas": 1, "rank": 0}
    return dealt["num_replicas"], dealt["rank"]


_SAVED = "freerun"


class FreerunCallback(Callback):
    """What Lightning does not do by itself for steps that draw random numbers and are normalised by counts.

    Exact means: Lightning divides the loss of each micro-batch by ``accumulate_grad_batches`` and averages gradients
    over processes, which weighs a short batch like a long one. Here the totals are summed, and the gradient is divided
    once by ``sum of counts``, over window and processes, before it is clipped: with ``c_j`` positions in micro-batch j,
    ``gradient = sum_j d total_j / sum_j c_j``. An epoch's last window may be short; it is divided by its own count.

    Logged at every optimizer step: ``train_loss`` (the exact mean), the method's scheduled parameters (nominal:
    ``teacher_forcing_ratio``), ``replaced_share`` (realised: of the entries that may be replaced, those that were),
    ``disagreeing_share`` (those that differ from gold) and ``passes`` (extra model calls, a mean over micro-batches).
    At the end of validation and test: what ``validation_step`` has summed.

    Saved in checkpoints: the states of the global generators of PyTorch, NumPy and Python, of every process, which
    Lightning leaves out, and of methods that have one (``replay_buffer``, ``alpha="running"``); they are put back when
    training goes on. Coins and draws need nothing saved.

    What it is not: a position in the data. In the middle of an epoch Lightning goes on with the data from its beginning
    unless the loader has ``state_dict`` and ``load_state_dict``.

    >>> FreerunCallback().fresh
    True
    """

    def __init__(self) -> None:
        super().__init__()
        self.fresh = True  # no step of this run is done
        self._window = StepStats()
        self._unit = 1.0  # what every total of the window was divided by, in all micro-batches and processes
        self._power: float | None = None
        self._examples = 0
        self._epoch: float | None = None
        self._to_restore: dict[str, Any] | None = None
        self._methods: dict[str, Method] = {}  # that have run, by name
        self._kept: dict[str, Any] = {}  # states of methods in a checkpoint, until each runs
        self._resumed_at: int | None = None  # the step of the checkpoint that the run goes on from
        self._scores: dict[tuple[int, str], list[float]] = {}
        self.scored = 0  # rows of this evaluation so far

    @staticmethod
    def of(module: LightningModule) -> FreerunCallback:
        """Return the callback of a module's trainer."""
        callbacks: list[Any] = getattr(module.trainer, "callbacks", [])
        for callback in callbacks:
            if isinstance(callback, FreerunCallback):
                return callback
        raise UserError(
            "freerun's steps need its callback, which makes the mean exact: give "
            "Trainer(callbacks=[freerun.lightning.FreerunCallback()])"
        )

    def begin(self, batch: Batch, trainer: Trainer, method: Method) -> tuple[Batch, Step]:
        """A micro-batch with its rows numbered, and the optimizer step that it belongs to."""
        before = self._methods.get(method.name)
        if before is None:
            self._begin_state(trainer, method)
        elif before is not method and (_state_of(before) or _state_of(method)):
            raise UserError(
                f"{method.name} has a state, and this is another object than that of the last step: make the method "
                "once, in the module's __init__ (of two of one name in a module none may have a state)"
            )
        self._methods[method.name] = method
        if self._window.micro_batches == 0:
            batches = trainer.num_training_batches
            inside = trainer.fit_loop.batch_idx / batches if math.isfinite(batches) else None
            self._epoch = None if inside is None else trainer.current_epoch + inside
        step = Step(trainer.global_step, sample=self._examples, epoch=self._epoch)
        return numbered(batch, self._window.examples, trainer), step

    def _begin_state(self, trainer: Trainer, method: Any) -> None:
        """Give a method its state: that of the checkpoint which the run goes on from, or none at a run's first step."""
        if (state := self._kept.pop(method.name, None)) is not None:
            method.load_state_dict(state)
        elif self._resumed_at == trainer.global_step and _state_of(method):  # later a method may be new
            raise CheckpointError(
                f"{method.name} has a state, and the checkpoint has none of it: begin anew, or from a checkpoint that "
                "was saved with this method"
            )
        elif not trainer.global_step and hasattr(method, "load_state_dict"):
            method.load_state_dict({})

    def add(self, outcome: Outcome, rows: int, module: LightningModule, method: Method) -> Tensor:
        """Count a micro-batch of so many rows in and return the loss that Lightning is to differentiate."""
        trainer = module.trainer
        if not self._window.micro_batches:
            self._window = StepStats.of(method)
        self._window.add(
            outcome.report, outcome.total, outcome.count, examples=rows
        )  # some methods feed several runs of a row
        if trainer.accumulate_grad_batches == 1 and trainer.world_size == 1:
            self._unit = float(outcome.count)
            return outcome.loss
        if self._power is None:
            mean = mean_over_processes([float(outcome.count)], trainer, module)[0]
            # near the mean loss in size; a power of two, so that it makes no difference to any digit
            self._power = 2.0 ** round(math.log2(mean)) if mean > 0 else 1.0
        self._unit = self._power
        return outcome.total * (trainer.accumulate_grad_batches / self._power)

    def score(self, sums: dict[str, tuple[float, float]], rows: int, loader: int) -> None:
        """Count an evaluated batch in: for each name a total and what it is to be divided by."""
        self.scored += rows
        _add(self._scores, {(loader, name): pair for name, pair in sums.items()})

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget the checkpoint that a run before went on from."""
        if stage == "fit":
            self._kept, self._resumed_at = {}, None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.fresh, self._window, self._power = True, StepStats(), None
        self._methods = {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """In the middle of an epoch: go on with the generators as they were, whatever the loader has drawn."""
        if self._to_restore is not None:
            restore(self._to_restore)
            self._to_restore = None

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Divide the summed gradient by the count of the full window, and log what the window was."""
        if self._window.micro_batches == 0:
            return
        # the means over all processes in place of this one's sums
        window = self._window.with_sums(mean_over_processes(self._window.sums(), trainer, pl_module))
        examples = round(window.examples) * _dealt(trainer)[0]
        self._window = StepStats()
        if not window.count:
            raise UserError(
                f"optimizer step {trainer.global_step}: no position of the batch counts in the loss (its mask is all "
                "False): look at the masks that the collate function makes"
            )
        if self._unit != window.count:
            for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
                if parameter.grad is not None:
                    parameter.grad.mul_(self._unit / window.count)
        self._examples += examples
        pl_module.log_dict({"train_loss": window.total / window.count, **window.numbers()}, batch_size=examples)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._scores, self.scored = {}, 0

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the means of what was summed, over all batches and processes."""
        summed: dict[tuple[int, str], list[float]] = {}
        # by name: a process may have been dealt no batch at all
        for scores in of_all_processes(self._scores):
            _add(summed, scores)
        several = len({loader for loader, _ in summed}) > 1
        for (loader, name), (total, count) in sorted(summed.items()):
            label = f"{name}/dataloader_idx_{loader}" if several else name
            mean = total / count if count else math.nan
            pl_module.log(label, mean, sync_dist=True, batch_size=1, add_dataloader_idx=False)

    on_test_epoch_start = on_validation_epoch_start
    on_test_epoch_end = on_validation_epoch_end

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep of every process the states of generators and methods, and where in an epoch they were."""
        states_of = {name: _state_of(method) for name, method in self._methods.items()}
        checkpoint[_SAVED] = {
            "states": of_all_processes(states()),
            "methods": of_all_processes(self._kept | {name: state for name, state in states_of.items() if state}),
            "inside_epoch": not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch,
            "examples": self._examples,
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put the generators back before the loaders exist; inside an epoch once more when it goes on."""
        if trainer.state.fn != "fit":
            return
        saved, self._resumed_at = checkpoint.get(_SAVED), checkpoint.get("global_step")
        if saved is None:
            return
        self._examples, methods = saved["examples"], saved.get("methods", [{}])
        before, now = len(saved["states"]), trainer.world_size
        if before != now:
            rank_zero_warn(
                f"{before} process(es) wrote this checkpoint and {now} read it: batches are dealt out anew, so "
                "training goes on, and not exactly as it would have"
            )
        self._kept = dict(methods[min(trainer.global_rank, len(methods) - 1)])
        if trainer.global_rank >= len(saved["states"]):
            return  # another number of processes: their data are dealt out anew as well
        own = saved["states"][trainer.global_rank]
        restore(own)
        self._to_restore = own if saved["inside_epoch"] else None


def _state_of(method: Any) -> dict[str, Any]:
    return getattr(method, "state_dict", dict)()


def _add(sums: dict[tuple[int, str], list[float]], more: Mapping[tuple[int, str], Iterable[float]]) -> None:
    for entry, pair in more.items():
        sums[entry] = [known + number for known, number in zip(sums.get(entry, (0.0, 0.0)), pair, strict=True)]


class FreerunModule(LightningModule):
    """A model trained by a method, in Lightning; it brings its own ``FreerunCallback``.

    Args:
        model: an ``nn.Module`` from Batch to outputs: one of ``freerun.models``, your own, or ``hf.adapt(model)``.
        method: how it is trained.
        optimizer: from parameters to their optimizer; for a learning-rate schedule override
            ``configure_optimizers``.
        to_batch: from what the loader yields to a ``Batch``, on the device; None: the loader yields one.
        seed: of coins and draws; weights, dropout and data order are Lightning's (``seed_everything``).
        draw: how the model's own output is fed back in validation, as in ``validation_step``.

    Raises:
        UserError: a model without parameters to register, or one from Hugging Face that is not adapted.

    >>> import freerun as fr
    >>> model = fr.models.RecurrentSeq2Seq(source_vocab=5, target_vocab=4, size=8)
    >>> FreerunModule(model, fr.scheduled_sampling(0.5)).method
    scheduled_sampling(teacher_forcing_ratio=0.5)
    """

    def __init__(
        self,
        model: Module,
        method: Method,
        optimizer: Callable[[Iterable[Parameter]], Optimizer] = torch.optim.AdamW,
        *,
        to_batch: Callable[[Any], Batch] | None = None,
        seed: int = 0,
        draw: Any = "auto",
    ) -> None:
        super().__init__()
        _check(model, method)
        self.model, self.method, self.optimizer = model, method, optimizer
        self.to_batch, self.seed, self.draw = to_batch, seed, draw

    def configure_callbacks(self) -> list[FreerunCallback]:
        return [FreerunCallback()]

    def configure_optimizers(self) -> Any:
        return self.optimizer(self.parameters())

    def forward(self, batch: Any) -> Tensor:
        """The model's outputs on the history that the batch brings."""
        return self.model(self._batch(batch))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return training_step(self, self.model, self._batch(batch), self.method, seed=self.seed)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Score a batch, on gold history and on the model's own."""
        validation_step(self, self.model, self._batch(batch), self.method, draw=self.draw, loader=dataloader_idx)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.validation_step(batch, batch_idx, dataloader_idx)

    def _batch(self, batch: Any) -> Any:
        return batch if self.to_batch is None else self.to_batch(batch)


def _check(model: Any, method: Any) -> None:
    problems: list[str] = []
    if any(kind.__name__ == "PreTrainedModel" for kind in type(model).__mro__):
        problems.append(
            f"model is a {type(model).__name__} as it is: give freerun.hf.adapt(model), which takes a Batch"
        )
    elif not isinstance(model, Module):
        problems.append(
            f"model must be an nn.Module, so that Lightning finds its parameters; got {type(model).__name__}: give one "
            "whose forward takes a Batch"
        )
    if isinstance(method, type) or not isinstance(method, Method):
        got = method.__name__ + " itself" if isinstance(method, type) else repr(method)
        problems.append(f"method must be a method with its arguments, like scheduled_sampling(0.5); got {got}")
    if problems:
        raise UserError(problems)
