"""Roll-ins by parallel passes, for anything with a forward: exact when repeated until nothing changes."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from freerun.errors import UserError
from freerun.rollin.plan import Plan
from freerun.types import Batch, Split

__all__ = ["passes_roll_in"]


def passes_roll_in(
    model: Callable[[Batch], Tensor], batch: Batch, plan: Plan, passes: int | None
) -> tuple[Tensor, int]:
    """The history after k passes (k given: an approximation) or at the fixed point (None: exact).

    The mixed history is the unique fixed point of a strictly lower-triangular map: after n passes every row's
    first n own entries are final, and a pass that changes nothing is the certificate.

    Args:
        model: any causal model, in the mode the roll-in is to run in.
        batch: the batch; its context may be encoded.
        plan: the entries to replace.
        passes: k, or None for exact.

    Raises:
        UserError: where an exact roll-in does not settle: the model is not causal, or random in eval mode.
    """
    rows, times = plan.rows, plan.times
    history = batch.history.clone()
    noise: Tensor | None = None
    limit = plan.longest + 1 if passes is None else passes
    for n in range(1, limit + 1):
        outputs = _outputs_at(model, batch.replace(history=history), rows, times)
        if n == 1:
            noise = plan.noise(outputs.shape[-1])
        own = plan.draw.choose(outputs, noise).to(history.dtype)
        if _same(own, history[rows, times]):
            return history, n
        # out of place: a model may have kept the tensor it was given
        history = history.index_put((rows, times), own)
    if passes is None:
        raise UserError(
            f"the roll-in did not settle in {limit} passes: the model's outputs depend on later entries, or change "
            "from call to call in eval mode; freerun.check_model(model, batch) says which"
        )
    return history, limit


def _same(a: Tensor, b: Tensor) -> bool:
    # NaN is a result too: it is the loss that has to report it
    return bool(((a == b) | (a.isnan() & b.isnan())).all())


def _outputs_at(model: Callable[[Batch], Tensor], batch: Batch, rows: Tensor, times: Tensor) -> Tensor:
    if isinstance(model, Split):
        return model.head(model.hidden(batch)[rows, times])
    return model(batch)[rows, times]
