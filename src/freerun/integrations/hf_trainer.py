"""``transformers.Trainer`` and its relatives with one more argument, ``method=``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint

from freerun.errors import UserError
from freerun.integrations.hf_generate import predictions
from freerun.integrations.hf_mistakes import without_labels
from freerun.integrations.hf_runner import MethodRunner, without_columns
from freerun.integrations.hf_scores import Callback, devices_of, first_rows

if TYPE_CHECKING:
    Base = transformers.Trainer
else:
    Base = object


class _KeepsState(transformers.TrainerCallback):
    """Writes a method's state into each checkpoint."""

    def __init__(self, applied: MethodRunner) -> None:
        self.applied = applied

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.applied.save_state(Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")


class MethodMixin(Base):
    """``method=`` for any trainer built on ``transformers.Trainer``: ``class Mine(hf.MethodMixin, SFTTrainer): pass``.

    The loss of a step is the sum of the method's totals over the number of target tokens, both over the accumulation
    window and all ranks; tokens that a method's ``target`` leaves out are among them. Where the trainer has a loss of
    its own (``loss_from``), only the ids that the model reads are swapped. Evaluation is teacher-forced, by the
    trainer's own loss; ``hf.Callback`` adds free-running scores.

    Args:
        args: the trainer's own, as are ``kwargs``.
        method: a method of freerun, run at ``state.global_step`` with a key from ``args.seed``. None: the
            trainer's own training.
        predict_with_generate: evaluation gives ``compute_metrics`` what the model generates instead of logits, for
            decoders alone too: ``predictions`` (rows, n) are ids after the prompt (the ids before the labels) and
            padding. None: what the arguments have, False where they have no such name.

    Raises:
        UserError: before the first step, where the method could not do what it promises; all problems at once.

    What it is not: a change of the trainer's data order, optimizer, checkpoints or evaluation.
    """

    loss_from: str = "auto"
    """``"method"``: the method's own total, divided token-exactly. ``"trainer"``: the trainer's loss on swapped ids.
    ``"auto"``: the trainer's where its class defines ``compute_loss``, where it has a ``compute_loss_func``, and
    where the model adds a loss on its routing; else the method's."""

    def __init__(
        self, *args: Any, method: Any = None, predict_with_generate: bool | None = None, **kwargs: Any
    ) -> None:
        if method is not None and (isinstance(method, type) or not hasattr(method, "run")):
            got = (
                f"{getattr(method, '__name__', '...')} itself, which is to be called"
                if callable(method)
                else repr(method)
            )
            raise UserError(f"method must be a method, such as fr.scheduled_sampling(0.75); got {got}")
        self.method = method
        super().__init__(*args, **kwargs)
        self._bind_callbacks()
        self._generates = self._generates_texts(predict_with_generate)
        if method is None:
            return
        after = type(self).__mro__[type(self).__mro__.index(MethodMixin) + 1]
        if problems := without_labels(self, after.__name__):
            raise UserError(problems)
        self._applied = MethodRunner(self, method, _loss_from(self))
        self.add_callback(_KeepsState(self._applied))
        if self._applied.loss_from == "method":
            # the loss is divided by the full window's count already
            self.loss_is_scaled_for_ga = True
            self.model_accepts_loss_kwargs = True

    def add_callback(self, callback: Any) -> None:
        """Add a callback; those of freerun learn whose evaluations they score."""
        super().add_callback(callback)
        self._bind_callbacks()

    def _bind_callbacks(self) -> None:
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, Callback):
                callback.attach(self)

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
            inputs, num_items_in_batch = self._applied.plain_inputs(model, inputs), None
        elif self.method is not None and self._applied.loss_from == "trainer":
            inputs = self._applied.mixed_inputs(model, inputs)
        elif self.method is not None:
            loss, logits = self._applied.loss(model, inputs, logits=return_outputs)
            return (loss, {"loss": loss, "logits": logits}) if return_outputs else loss
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """The trainer's own; what evaluation could not generate is refused before the first step."""
        if self.method is not None:
            last = resume_from_checkpoint
            last = get_last_checkpoint(self.args.output_dir) if last is True else last
            self._applied.begins_from = Path(last) if last else None
        if self._generates and self.args.eval_strategy != "no":
            with torch.random.fork_rng(devices_of(self)):
                for inputs in map(self._prepare_inputs, first_rows(self)):
                    predictions(self, inputs)
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None, **settings: Any
    ) -> Any:
        """The trainer's own loss and, with ``predict_with_generate``, generated ids in place of logits."""
        # a Seq2SeqTrainer would force the languages of all rows in each
        by_row = inputs.get("forced_bos_token_id") is not None and getattr(self.args, "predict_with_generate", False)
        if prediction_loss_only or not (self._generates or by_row):
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys, **settings)
        inputs = self._prepare_inputs(inputs)
        labels, loss = inputs.get("labels"), None
        if labels is not None:
            loss, _, _ = super().prediction_step(model, without_columns(inputs), True, ignore_keys)
        return loss, predictions(self, inputs), labels

    def _generates_texts(self, requested: bool | None) -> bool:
        """Whether evaluation generates here; a Seq2SeqTrainer does it itself for an encoder-decoder."""
        own = getattr(self.args, "predict_with_generate", None)
        if own is not None and requested not in (None, own):
            raise UserError(
                f"predict_with_generate={requested} here and {own} in the arguments: set it in the arguments alone"
            )
        config: Any = getattr(self.model, "config", None)
        itself = isinstance(self, transformers.Seq2SeqTrainer) and getattr(config, "is_encoder_decoder", False)
        return bool(own or requested) and not itself

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The trainer's log; its training lines also have the realised share of own entries, passes and schedules."""
        # such lines are written by all ranks at once
        if self.method is not None and "loss" in logs and "learning_rate" in logs:
            logs.update(self._applied.pop_log())
        super().log(logs, start_time)


def _loss_from(trainer: Any) -> str:
    """Return whose loss a trainer's steps take, ``"method"`` or ``"trainer"``."""
    requested, function = trainer.loss_from, trainer.compute_loss_func is not None
    if requested not in ("auto", "method", "trainer"):
        raise UserError(f"loss_from must be one of auto, method, trainer; got {requested!r}")
    if requested == "method" and function:
        raise UserError(
            "loss_from='method' never calls compute_loss_func: leave one of them out. With loss_from='auto' the "
            "function is called with the outputs on the method's history"
        )
    if requested != "auto":
        return requested
    # a class between the mixin and transformers.Trainer may compute a loss of its own (TRL's do)
    after = type(trainer).__mro__[type(trainer).__mro__.index(MethodMixin) + 1 :]
    own = next(cls for cls in after if "compute_loss" in vars(cls)) is not transformers.Trainer
    router = getattr(getattr(trainer.model, "config", None), "output_router_logits", False)
    return "trainer" if own or function or router else "method"


class Trainer(MethodMixin, transformers.Trainer):
    """``transformers.Trainer`` with ``method``; see ``MethodMixin``."""


class Seq2SeqTrainer(MethodMixin, transformers.Seq2SeqTrainer):
    """``transformers.Seq2SeqTrainer`` with ``method``; see ``MethodMixin``."""
