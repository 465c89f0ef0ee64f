"""The callback: exact means over accumulation and processes, what is logged, and the states of the generators."""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from freerun.errors import UserError
from freerun.integrations.lightning.states import of_all_processes, restore, states
from freerun.integrations.lightning.window import Window, mean_over_processes, numbered, scale_gradients
from freerun.types import Batch, Outcome, Step

__all__ = ["FreerunCallback"]

_SAVED = "freerun"


class FreerunCallback(Callback):
    """What Lightning does not do by itself for steps that draw random numbers and are normalised by counts.

    Exact means: Lightning divides the loss of each micro-batch by ``accumulate_grad_batches`` and averages gradients
    over processes, which weighs a short batch like a long one. Here the totals are summed, and the gradient is divided
    once by ``sum of counts``, over window and processes, before it is clipped: with ``c_j`` positions in micro-batch j,
    ``gradient = sum_j d total_j / sum_j c_j``. An epoch's last window may be short; it is divided by its own count.

    Logged at every optimizer step: ``train_loss`` (the exact mean), the method's scheduled parameters (nominal:
    ``teacher_forcing_ratio``), ``own_share`` (realised: of the entries that may be replaced, those that were),
    ``disagreeing_share`` (those that differ from gold) and ``passes`` (extra model calls, a mean over micro-batches).
    At the end of validation and test: what ``validation_step`` has summed.

    Saved in checkpoints: the states of the global generators of PyTorch, NumPy and Python, of every process, which
    Lightning leaves out; they are put back when training goes on. Coins and draws need nothing saved.

    What it is not: a position in the data. In the middle of an epoch Lightning goes on with the data from its beginning
    unless the loader has ``state_dict`` and ``load_state_dict``.

    >>> FreerunCallback().fresh
    True
    """

    def __init__(self) -> None:
        super().__init__()
        self.fresh = True  # no step of this run has been made
        self._window = Window()
        self._power: float | None = None
        self._examples = 0
        self._epoch: float | None = None
        self._to_restore: dict[str, Any] | None = None
        self._scores: dict[tuple[int, str], list[float]] = {}
        self._scored = 0

    @staticmethod
    def of(module: LightningModule) -> FreerunCallback:
        """The callback of a module's trainer.

        Raises:
            UserError: there is none.
        """
        callbacks: list[Any] = getattr(module.trainer, "callbacks", [])
        for callback in callbacks:
            if isinstance(callback, FreerunCallback):
                return callback
        raise UserError(
            "freerun's steps need its callback, which makes the mean exact: give "
            "Trainer(callbacks=[freerun.lightning.FreerunCallback()])"
        )

    def begin(self, batch: Batch, trainer: Trainer) -> tuple[Batch, Step]:
        """A micro-batch with its rows numbered, and the optimizer step that it belongs to."""
        if self._window.micro == 0:
            batches = trainer.num_training_batches
            inside = trainer.fit_loop.batch_idx / batches if math.isfinite(batches) else None
            self._epoch = None if inside is None else trainer.current_epoch + inside
        step = Step(trainer.global_step, sample=self._examples, epoch=self._epoch)
        return numbered(batch, self._window.examples, trainer), step

    def add(self, outcome: Outcome, module: LightningModule, names: set[str]) -> Tensor:
        """Count a micro-batch in; the loss that Lightning is to differentiate."""
        trainer = module.trainer
        if trainer.accumulate_grad_batches == 1 and trainer.world_size == 1:
            self._window.unit = float(outcome.count)
            self._window.add(outcome, names)
            return outcome.loss
        if self._power is None:
            mean = mean_over_processes([float(outcome.count)], trainer, module)[0]
            # near the mean loss in size; a power of two, so that it makes no difference to any digit
            self._power = 2.0 ** round(math.log2(mean)) if mean > 0 else 1.0
        self._window.unit = self._power
        self._window.add(outcome, names)
        return outcome.total * (trainer.accumulate_grad_batches / self._power)

    def score(self, sums: dict[str, tuple[float, float]], rows: int, loader: int) -> None:
        """Count an evaluated batch in: for each name a total and what it is to be divided by."""
        self._scored += rows
        for name, pair in sums.items():
            known = self._scores.setdefault((loader, name), [0.0, 0.0])
            known[0] += pair[0]
            known[1] += pair[1]

    def number_scored(self, batch: Batch, trainer: Trainer) -> Batch:
        """A batch to be evaluated, with its rows numbered on from those before."""
        return numbered(batch, self._scored, trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with an empty window."""
        self.fresh, self._window, self._power = True, Window(), None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """In the middle of an epoch: go on with the generators as they were, whatever the loader has drawn."""
        if self._to_restore is not None:
            restore(self._to_restore)
            self._to_restore = None

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Divide the summed gradient by the count of the whole window, and log what the window was."""
        if self._window.micro == 0:
            return
        window = self._window.over_processes(trainer, pl_module)
        examples = round(window.examples * (trainer.distributed_sampler_kwargs or {"num_replicas": 1})["num_replicas"])
        self._window = Window()
        if not window.count:
            raise UserError(
                f"optimizer step {trainer.global_step}: no position of the batch counts in the loss (its mask is all "
                "False): look at the masks that the collate function makes"
            )
        if window.unit != window.count:
            scale_gradients(optimizer, window.unit / window.count)
        self._examples += examples
        pl_module.log_dict(window.numbers(), batch_size=examples)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with empty sums."""
        self._scores, self._scored = {}, 0

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the means of what was summed, over all batches and processes."""
        summed: dict[tuple[int, str], list[float]] = {}
        # by name: a process may have been dealt no batch at all
        for scores in of_all_processes(self._scores):
            for place, (total, count) in scores.items():
                known = summed.setdefault(place, [0.0, 0.0])
                known[0], known[1] = known[0] + total, known[1] + count
        several = len({loader for loader, _ in summed}) > 1
        for (loader, name), (total, count) in sorted(summed.items()):
            label = f"{name}/dataloader_idx_{loader}" if several else name
            mean = total / count if count else math.nan
            pl_module.log(label, mean, sync_dist=True, batch_size=1, add_dataloader_idx=False)

    on_test_epoch_start = on_validation_epoch_start
    on_test_epoch_end = on_validation_epoch_end

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the generators' states of every process, and where in an epoch they were."""
        checkpoint[_SAVED] = {
            "states": of_all_processes(states()),
            "inside_epoch": not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch,
            "examples": self._examples,
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put the generators back before the loaders are made; inside an epoch once more when it goes on."""
        saved = checkpoint.get(_SAVED)
        if saved is None or trainer.state.fn != "fit":
            return
        self._examples = saved["examples"]
        if trainer.global_rank >= len(saved["states"]):
            return  # another number of processes: their data are dealt out anew as well
        found = saved["states"][trainer.global_rank]
        restore(found)
        self._to_restore = found if saved["inside_epoch"] else None
