"""transformers' trainers, and any trainer built on them, with one more argument: ``method``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import transformers

from freerun.integrations.transformers import losses
from freerun.integrations.transformers.applied import Applied
from freerun.integrations.transformers.callback import Callback

if TYPE_CHECKING:
    Base = transformers.Trainer
else:
    Base = object

__all__ = ["MethodMixin", "Seq2SeqTrainer", "Trainer"]


class MethodMixin(Base):
    """``method=`` for any trainer built on ``transformers.Trainer``: ``class Mine(hf.MethodMixin, SFTTrainer): pass``.

    The loss of a step is the sum of the method's totals over the number of target tokens, both over the accumulation
    window and all ranks. Where the trainer has a loss of its own (``loss_from``), only the ids that the model is told
    are swapped. Evaluation is teacher-forced, by the trainer's own loss; ``hf.Callback`` adds free-running scores.

    Args:
        args: the trainer's own, as are ``kwargs``.
        method: a method of freerun, asked at ``state.global_step`` with a key made from ``args.seed``. None: the
            trainer as it is, nothing overridden.

    Raises:
        UserError: before the first step, where the method could not do what it says; all problems at once.

    What it is not: a change of the trainer's data order, optimizer, checkpoints or evaluation.
    """

    loss_from: str = "auto"
    """``"method"``: the method's own total, divided token-exactly. ``"trainer"``: the trainer's loss on swapped ids.
    ``"auto"``: the trainer's where its class defines ``compute_loss``, where it was given ``compute_loss_func``, and
    where the model adds a loss on its routing; else the method's."""

    def __init__(self, *args: Any, method: Any = None, **kwargs: Any) -> None:
        self.method = method
        super().__init__(*args, **kwargs)
        self._bind_callbacks()
        if method is None:
            return
        loss_from = losses.chosen_loss(
            self.loss_from,
            own=_has_own_loss(type(self)),
            function=self.compute_loss_func is not None,
            router=bool(getattr(getattr(self.model, "config", None), "output_router_logits", False)),
        )
        self._applied = Applied(self, method, loss_from)
        if loss_from == "method":
            # the loss is divided by the whole window's count already
            self.loss_is_scaled_for_ga = True
            self.model_accepts_loss_kwargs = True

    def add_callback(self, callback: Any) -> None:
        """Add a callback; those of freerun learn that they will be asked."""
        super().add_callback(callback)
        self._bind_callbacks()

    def _bind_callbacks(self) -> None:
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, Callback):
                callback.bind()

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """The accumulation window, and the number of its target tokens over all ranks."""
        samples, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.method is None or not samples:
            return samples, count
        return samples, self._applied.open(samples, device)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The method's loss in training; with ``return_outputs`` also its logits, aligned with the targets."""
        if self.method is not None and not model.training:
            # without a count: the mean over these tokens, which every model gets right
            inputs, num_items_in_batch = self._applied.whole(model, inputs), None
        elif self.method is not None and self._applied.loss_from == "trainer":
            inputs = self._applied.swapped(model, inputs)
        elif self.method is not None:
            loss, logits = self._applied.loss(model, inputs)
            return (loss, {"loss": loss, "logits": logits}) if return_outputs else loss
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The trainer's log; its training lines also say the realised share of own entries, passes and schedules."""
        # such lines are written by all ranks at once
        if self.method is not None and "loss" in logs and "learning_rate" in logs:
            logs.update(self._applied.drained())
        super().log(logs, start_time)

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """The trainer's evaluation, with the scores of ``hf.Callback`` among its metrics."""
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, Callback) and output.metrics is not None:
                scores = callback.scores(self, dataloader)
                output.metrics.update({f"{metric_key_prefix}_{name}": score for name, score in scores.items()})
        return output


def _has_own_loss(trainer: type) -> bool:
    """Whether a class between the mixin and ``transformers.Trainer`` computes the loss."""
    after = trainer.__mro__[trainer.__mro__.index(MethodMixin) + 1 :]
    return next(cls for cls in after if "compute_loss" in vars(cls)) is not transformers.Trainer


class Trainer(MethodMixin, transformers.Trainer):
    """``transformers.Trainer`` with ``method``; see ``MethodMixin``."""


class Seq2SeqTrainer(MethodMixin, transformers.Seq2SeqTrainer):
    """``transformers.Seq2SeqTrainer`` with ``method``; see ``MethodMixin``."""
