"""Free-running scores on a trainer's evaluation set, beside the teacher-forced ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import Tensor
from torch.nn import functional as F
from transformers import TrainerCallback

from freerun.errors import UserError
from freerun.integrations.hf_runner import MethodRunner, adapted, collated_batch, has_targets
from freerun.methods import free_running, teacher_forcing
from freerun.models.huggingface.model import context_of
from freerun.rollin import eval_mode

if TYPE_CHECKING:
    Base = transformers.Trainer
else:
    Base = object


class MethodMixin(Base):
    """``method=`` for any trainer built on ``transformers.Trainer``: ``class Mine(hf.MethodMixin, SFTTrainer): pass``.

    The loss of a step is the sum of the method's totals over the number of target tokens, both over the accumulation
    window and all ranks. Where the trainer has a loss of its own (``loss_from``), only the ids that the model reads
    are swapped. Evaluation is teacher-forced, by the trainer's own loss; ``hf.Callback`` adds free-running scores.

    Args:
        args: the trainer's own, as are ``kwargs``.
        method: a method of freerun, run at ``state.global_step`` with a key from ``args.seed``. None: the
            trainer as it is, nothing overridden.

    Raises:
        UserError: before the first step, where the method could not do what it promises; all problems at once.

    What it is not: a change of the trainer's data order, optimizer, checkpoints or evaluation.
    """

    loss_from: str = "auto"
    """``"method"``: the method's own total, divided token-exactly. ``"trainer"``: the trainer's loss on swapped ids.
    ``"auto"``: the trainer's where its class defines ``compute_loss``, where it has a ``compute_loss_func``, and
    where the model adds a loss on its routing; else the method's."""

    def __init__(self, *args: Any, method: Any = None, **kwargs: Any) -> None:
        self.method = method
        super().__init__(*args, **kwargs)
        self._bind_callbacks()
        if method is None:
            return
        self._applied = MethodRunner(self, method, _loss_from(self))
        if self._applied.loss_from == "method":
            # the loss is divided by the full window's count already
            self.loss_is_scaled_for_ga = True
            self.model_accepts_loss_kwargs = True

    def add_callback(self, callback: Any) -> None:
        """Add a callback; those of freerun learn that their scores will be used."""
        super().add_callback(callback)
        self._bind_callbacks()

    def _bind_callbacks(self) -> None:
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, Callback):
                callback.bound = True

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
            loss, logits = self._applied.loss(model, inputs)
            return (loss, {"loss": loss, "logits": logits}) if return_outputs else loss
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The trainer's log; its training lines also have the realised share of own entries, passes and schedules."""
        # such lines are written by all ranks at once
        if self.method is not None and "loss" in logs and "learning_rate" in logs:
            logs.update(self._applied.pop_log())
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


_NAMES = ("teacher_forced_loss", "teacher_forced_token_accuracy", "free_running_loss", "free_running_token_accuracy")


class Callback(TrainerCallback):
    """Adds to every evaluation what the model scores on its own history: ``eval_free_running_loss`` and its like.

    ``teacher_forced_*`` on gold history, ``free_running_*`` on the model's own choices over the gold length (prompts
    stay), token-exact over the set and all ranks: ``loss`` in nats a token, ``token_accuracy`` the share of positions
    whose likeliest token is gold. They are metrics like others: ``metric_for_best_model="eval_free_running_loss"``.

    Args:
        draw: how the model's own tokens are chosen: ``"greedy"``, ``"sample"`` (always with the same coins) or a draw.
        batches: evaluation batches scored; None: all.

    Works in the trainers of ``freerun.hf``, with ``method=None`` too. What it is not: generation; lengths are gold.
    """

    def __init__(self, draw: Any = "greedy", batches: int | None = None) -> None:
        if batches is not None and not batches >= 1:
            raise UserError(f"batches must be at least 1, or None for all; got {batches}")
        self.method = free_running(draw=draw)
        self.batches = batches
        self.bound = False  # a trainer of freerun will call ``scores``

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Refuse a trainer that would never call ``scores``."""
        if not self.bound:
            raise UserError(
                "hf.Callback needs a trainer of freerun: freerun.hf.Trainer, freerun.hf.Seq2SeqTrainer, or a class "
                "with freerun.hf.MethodMixin before the trainer (method=None leaves it as it is)"
            )

    @torch.no_grad()
    def scores(self, trainer: Any, batches: Iterable[Any]) -> dict[str, float]:
        """The four scores, on all ranks; empty where the set has no labels.

        Args:
            trainer: whose model is scored; its mode is restored.
            batches: collated, as in the evaluation loop.
        """
        sums = torch.zeros(5, dtype=torch.float64)
        first, world, rank = 0, trainer.accelerator.num_processes, trainer.accelerator.process_index
        devices = [trainer.args.device] if trainer.args.device.type == "cuda" else []
        with eval_mode(trainer.model), torch.random.fork_rng(devices):
            for number, collated in enumerate(batches):
                # a loop left early would leave accelerate in the middle of it
                if (self.batches is not None and number >= self.batches) or collated.get("labels") is None:
                    continue
                inputs = trainer._prepare_inputs(collated)
                size = len(inputs["labels"])
                rows = first + rank * size + torch.arange(size, device=inputs["labels"].device)
                mine = self._sums(trainer, inputs, rows)
                # the copies that fill up the last batch of a rank are left out
                sums += trainer.accelerator.gather_for_metrics(mine).sum(0).cpu()
                first += size * world
        if not sums[-1]:
            return {}
        return dict(zip(_NAMES, (sums[:-1] / sums[-1]).tolist(), strict=True))

    def _sums(self, trainer: Any, inputs: Any, rows: Tensor) -> Tensor:
        """(rows, 5): summed loss and right choices on gold, the same on the model's own history, and the count."""
        # of all rows, whatever they hold: processes exchange tensors of one shape
        sums = torch.zeros(len(rows), 5, device=rows.device)
        # outside autocast: in half precision small differences mean nothing
        adapter = adapted(trainer.model, inputs)
        if not has_targets(adapter, inputs):
            return sums
        batch = collated_batch(adapter, inputs, rows)
        parts: list[Tensor] = []
        with trainer.accelerator.autocast():
            for method in (teacher_forcing(), self.method):
                outputs = method.run(adapter, batch, step=0).outputs
                loss = F.cross_entropy(outputs.transpose(1, 2).float(), batch.targets, reduction="none")
                parts += [loss, (outputs.argmax(-1) == batch.targets).to(loss.dtype)]
        parts.append(batch.mask.to(parts[0].dtype))
        own_sums = torch.stack([torch.where(batch.mask, part, 0).sum(1) for part in parts], 1)
        if len(own_sums) == len(sums):
            return own_sums
        layout = context_of(batch).layout
        assert layout is not None  # the batch is complete
        # a packed row's documents; one of a single token has no positions, and nothing to add
        row = layout.indices.amax(1).clamp_min(0) // inputs["labels"].shape[1]
        return sums.index_add(0, row, own_sums)
