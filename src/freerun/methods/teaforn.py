"""TeaForN: a stack of passes, each fed what the one before predicts, with gradient through all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from freerun.arguments import at_least
from freerun.batch import Batch
from freerun.errors import UserError
from freerun.keys import fold
from freerun.methods.base import SHARED, Citation, TransformMethod
from freerun.methods.report import replacement_counts
from freerun.methods.two_pass import HARD, MIXES, Mix
from freerun.objectives import Objective
from freerun.rollin import checked, forward, supports, wrapper_hint
from freerun.schedules import Schedule
from freerun.types import Embedder, Encoder, Outcome

_MIXES = tuple(mix for mix in MIXES if mix not in HARD)


@dataclass(frozen=True, repr=False)
class TeacherForcingWithNGrams(TransformMethod):
    """Teacher-force, then predict again from what was predicted, N passes deep, and learn from all of them.

    ``z^1_t = f(y_<t, x)``; ``z^n_t = f(v^n_<t, x)`` with the vectors ``v^n_t = sum_u w_u(z^{n-1}_t) e(u)`` in place of
    ``e(y_t)``; ``loss = -sum_n discount^(n-1) sum_{t >= n-1} log p(y_t | z^n_t)``, with gradient through the weights w
    into the passes before. A position counts in pass n where n - 1 entries that may be replaced stand before it: there
    z^n is n - 1 predictions deep. The count is gold's.

    Args:
        passes: N of 1 or more; 1 is teacher forcing. Memory and time grow with N.
        discount: of each further pass, in [0, 1]; a number or a schedule.
        mix: of the symbols fed: ``"top_k"``, ``"expected"`` (softmax), ``"sparsemax"``, ``"gumbel_softmax"`` or
            ``"straight_through"``; see ``two_pass``.
        temperature: of the mix, above 0.
        top_k: symbols mixed by ``mix="top_k"``.
        objective: ``"auto"``, ``"cross_entropy"`` or a function.

    All passes run in the mode the model is in, on one encoding of the context. ``fed`` and ``outputs`` of an outcome
    are those of the first.

    Raises:
        UserError: arguments out of range or without effect, targets that are values, a model that takes no vectors.

    What it is not: the paper's stack to the letter: there a pass begins with the first prediction of the one before,
    without a start symbol, and positions are counted anew; here start symbol and known entries stay, and an entry keeps
    its position. Nor does it feed hidden vectors in place of embeddings, nor have decoders of their own weights. Nor is
    it ``two_pass``, which mixes gold and own entries and learns from the last pass.

    Reference: Goodman, Ding and Soricut 2020, TeaForN: teacher-forcing with n-grams, EMNLP, arXiv:2010.03494.

    >>> TeacherForcingWithNGrams(passes=3, mix="expected")
    teaforn(passes=3, mix='expected')
    """

    passes: int = at_least(1, 2)
    discount: float | Schedule = 0.5
    mix: str = "top_k"
    temperature: float = 1.0
    top_k: int = 5
    objective: str | Objective = "auto"

    name: ClassVar[str] = "teaforn"
    summary: ClassVar[str] = "N passes, each fed the predictions of the one before, with gradient through all"
    only_for: ClassVar[tuple[str, str] | None] = ("symbols", "multi_step")
    ranges: ClassVar[dict[str, tuple[float, float]]] = {"discount": (0.0, 1.0), **SHARED}
    citation: ClassVar[Citation] = Citation(
        formula="z^1 = f(y, x);  z^n = f(v^n, x), v^n_t = sum_u w_u(z^{n-1}_t) e(u);  "
        "loss = -sum_n discount^(n-1) sum_{t >= n-1} log p(y_t | z^n_t)",
        reference="Goodman, S., Ding, N. and Soricut, R. (2020). TeaForN: Teacher-forcing with n-grams. EMNLP. "
        "arXiv:2010.03494",
        bibtex="""@inproceedings{goodman2020teaforn,
  author    = {Goodman, Sebastian and Ding, Nan and Soricut, Radu},
  title     = {{TeaForN}: Teacher-Forcing with N-grams},
  booktitle = {Proceedings of the 2020 Conference on Empirical Methods in Natural Language Processing},
  year      = {2020}
}""",
    )

    def problems(self) -> list[str]:
        """Return which arguments cannot be."""
        rule = f"mix must be one of {', '.join(_MIXES)}; got {self.mix!r}: a symbol carries no gradient"
        found = [rule] if self.mix in HARD else []
        return found + Mix(self.mix, self.temperature, self.top_k).problems() + super().problems()

    @property
    def own_loss(self) -> tuple[str, ...]:
        """Later passes have losses of their own."""
        more = self.passes > 1 and self.discount != 0
        return (*super().own_loss, *(["passes adds the losses of later passes"] if more else []))

    @property
    def calls_model(self) -> bool:
        """Later passes are calls."""
        return self.passes > 1 and self.discount != 0

    def mix_history(self, model: Any, batch: Batch, step: int, key: int) -> tuple[Batch, dict[str, float | str]]:
        """The batch as it is: what the first pass is fed."""
        if not batch.is_discrete:
            raise UserError("teaforn mixes symbols, and these targets are values: use multi_step")
        report = replacement_counts(batch, batch.history, 0)
        return batch, {"discount": self.value("discount", step, key), **report, "passes": 0, "engine": "none"}

    def compute(self, model: Any, batch: Batch, step: int, key: int) -> Outcome:
        """One step: the passes and their losses."""
        fed, report = self.mix_history(model, batch, step, key)
        mix, discount = Mix(self.mix, self.temperature, self.top_k), float(report["discount"])
        if self.passes > 1 and not supports(model, Embedder):
            raise UserError(
                "teaforn feeds mixtures of symbols, which needs a model with lookup and outputs_from; "
                f"{type(model).__name__} takes ids only: add the two methods, or use two_pass"
                f"{wrapper_hint(model, Embedder)}"
            )
        if self.passes == 1 or discount == 0:
            return super().compute(model, batch, step, key)
        parts: Any = model
        read = parts.encode(fed) if supports(model, Encoder) else fed
        outputs = forward(model, read)
        first = self.finish(outputs, fed, {**report, "passes": self.passes - 1, "engine": "stacked passes"})
        total, before = first.total, fed.replaceable.cumsum(1) - fed.replaceable.long()
        rows, times = fed.replaceable.nonzero(as_tuple=True)
        gold = parts.lookup(fed.history)
        for n in range(1, self.passes):
            logits = outputs[rows, times]
            noise = mix.draw.noise(fold(key, "draw", int(step), n), fed.row_numbers[rows], times, logits.shape[-1])
            vectors = gold.index_put((rows, times), mix.vectors(parts, logits, noise).to(gold.dtype))
            outputs = checked(parts.outputs_from(read, vectors), read)
            deep = fed.made(mask=fed.mask & (before >= n))
            total = total + discount**n * self.finish(outputs, deep, {}).total
        return first.made(total=total)


teaforn = TeacherForcingWithNGrams
