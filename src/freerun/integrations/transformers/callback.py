"""Free-running scores on a trainer's evaluation set, beside the teacher-forced ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import TrainerCallback

from freerun.errors import UserError
from freerun.integrations.transformers.applied import adapted
from freerun.integrations.transformers.normalising import collated_batch, learns
from freerun.methods import free_running, teacher_forcing
from freerun.models.huggingface.told import told
from freerun.rollin import evaluating
from freerun.types import Batch

__all__ = ["Callback", "row_sums"]

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
        self._bound = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Refuse a trainer that would never ask."""
        if not self._bound:
            raise UserError(
                "hf.Callback needs a trainer of freerun: freerun.hf.Trainer, freerun.hf.Seq2SeqTrainer, or a class "
                "with freerun.hf.MethodMixin before the trainer (method=None leaves it as it is)"
            )

    def bind(self) -> None:
        """Said by a trainer that will ask for ``scores``."""
        self._bound = True

    @torch.no_grad()
    def scores(self, trainer: Any, batches: Iterable[Any]) -> dict[str, float]:
        """The four scores, on all ranks; empty where the set has no labels.

        Args:
            trainer: whose model is scored; its mode is restored.
            batches: collated, as the evaluation loop gives them.
        """
        sums = torch.zeros(5, dtype=torch.float64)
        first, world, rank = 0, trainer.accelerator.num_processes, trainer.accelerator.process_index
        devices = [trainer.args.device] if trainer.args.device.type == "cuda" else []
        with evaluating(trainer.model), torch.random.fork_rng(devices):
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
        """(rows, 5), whatever the rows hold: processes exchange tensors of one shape."""
        sums = torch.zeros(len(rows), 5, device=rows.device)
        # outside autocast: in half precision small differences say nothing
        adapter = adapted(trainer.model, inputs)
        if not learns(adapter, inputs):
            return sums
        batch = collated_batch(adapter, inputs, rows)
        with trainer.accelerator.autocast():
            found = row_sums(adapter, batch, self.method)
        if len(found) == len(sums):
            return found
        layout = told(batch).layout
        assert layout is not None  # the batch is whole
        # a packed row's documents; one of a single token has no places, and nothing to add
        row = layout.places.amax(1).clamp_min(0) // inputs["labels"].shape[1]
        return sums.index_add(0, row, found)


def row_sums(model: Any, batch: Batch, method: Any) -> Tensor:
    """(rows, 5): summed loss and right choices on gold, the same on the model's own history, and the count."""
    parts: list[Tensor] = []
    for each in (teacher_forcing(), method):
        outputs = each.run(model, batch, step=0).outputs
        loss = F.cross_entropy(outputs.transpose(1, 2).float(), batch.targets, reduction="none")
        parts += [loss, (outputs.argmax(-1) == batch.targets).to(loss.dtype)]
    counted = [torch.where(batch.mask, part, 0).sum(1) for part in (*parts, batch.mask.to(parts[0].dtype))]
    return torch.stack(counted, 1)
