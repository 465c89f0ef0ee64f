"""Word dropout: entries of the history are hidden in training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from freerun.arguments import is_number, one_of
from freerun.batch import Batch
from freerun.errors import UserError, whole
from freerun.gates import Token
from freerun.keys import fold, uniform
from freerun.methods.base import SHARED, Citation, TransformMethod
from freerun.methods.own_runs import model_ends
from freerun.methods.report import replacement_counts
from freerun.objectives import Objective
from freerun.schedules import Schedule


@dataclass(frozen=True, repr=False)
class WordDropout(TransformMethod):
    """Hide each entry of the history with probability ``1 - teacher_forcing_ratio``; targets stay.

    ``h_t = y_t`` with probability r(step), else a blank symbol, and for values a vector of zeros;
    ``loss = -sum_t log p(y_t | h_<t, x)``. Its gate is that of scheduled sampling.

    Args:
        teacher_forcing_ratio: P(gold) in [0, 1], Bowman's keep rate; a number or a schedule.
        blank: id that is fed instead; None: the end symbol, of the model's own generation or, in a recipe, of the data.
            It stands nowhere in gold's history before a target that counts. Of values the number that each channel is;
            None: 0.
        each: ``"entry"`` (Bowman et al.), or ``"symbol"``: all entries of a row with the same symbol are hidden
            together (Gal and Ghahramani, who take zeros for the embedding and scale the others up).
        objective: ``"auto"``, or another.

    Raises:
        UserError: arguments outside their range; symbols without a blank; ``each="symbol"`` for values.

    What it is not: a remedy for exposure bias as published, but against decoders that ignore their context; nor
    ``token_noise``, whose entries look like gold; nor ``no_history``, which hides all entries at test time too.

    References: Bowman et al. 2016, arXiv:1511.06349; Gal and Ghahramani 2016, arXiv:1512.05287.

    >>> import torch
    >>> ids = torch.tensor([[2, 1, 3, 4]])
    >>> WordDropout(0.5, blank=9).transform(lambda batch: batch, Batch(ids), step=0).history
    tensor([[2, 9, 9, 4]])
    """

    teacher_forcing_ratio: float | Schedule
    blank: float | None = None
    each: str = one_of(("entry", "symbol"), "entry")
    objective: str | Objective = "auto"

    name: ClassVar[str] = "word_dropout"
    summary: ClassVar[str] = "some entries of the history are blank in training"
    feeds_own: ClassVar[bool] = False
    ranges: ClassVar[dict[str, tuple[float, float]]] = {"teacher_forcing_ratio": (0.0, 1.0), **SHARED}
    citation: ClassVar[Citation] = Citation(
        formula="h_t = y_t with probability r(step), else a blank;  loss = -sum_t log p(y_t | h_<t, x)",
        reference="Bowman, S. R., Vilnis, L., Vinyals, O., Dai, A., Jozefowicz, R. and Bengio, S. (2016). Generating "
        "sentences from a continuous space. CoNLL. arXiv:1511.06349; by symbol: Gal, Y. and Ghahramani, Z. (2016). A "
        "theoretically grounded application of dropout in recurrent neural networks. NIPS. arXiv:1512.05287",
        bibtex="""@inproceedings{bowman2016generating,
  author    = {Bowman, Samuel R. and Vilnis, Luke and Vinyals, Oriol and Dai, Andrew and Jozefowicz, Rafal
               and Bengio, Samy},
  title     = {Generating Sentences from a Continuous Space},
  booktitle = {Conference on Computational Natural Language Learning},
  year      = {2016}
}""",
    )

    def problems(self) -> list[str]:
        """Return which arguments cannot be."""
        fine = self.blank is None or is_number(self.blank)
        return ([] if fine else [f"blank must be an id or a number; got {self.blank!r}"]) + super().problems()

    def mix_history(self, model: Any, batch: Batch, step: int, key: int) -> tuple[Batch, dict[str, float | str]]:
        """The batch with blanks in its history; no model call."""
        ratio, gate = self.value("teacher_forcing_ratio", step, key), fold(key, "gate", int(step))
        blank = self._blank(model, batch)
        if self.each == "entry":
            keep = Token()(batch, ratio, gate)
        else:
            keep = uniform(gate, batch.row_numbers[:, None], batch.history) < ratio
        hidden = batch.replaceable & ~keep
        where = hidden if batch.is_discrete else hidden[..., None]
        history = batch.history.masked_fill(where, blank) if bool(hidden.any()) else batch.history
        report = replacement_counts(batch, history, int(hidden.sum()))
        report = {"teacher_forcing_ratio": ratio, **report, "passes": 0, "engine": "none"}
        return batch.made(history=history, replaced=hidden), report

    def _blank(self, model: Any, batch: Batch) -> float:
        if not batch.is_discrete:
            if self.each == "symbol":
                raise UserError("each='symbol' hides entries with the same symbol, and these targets are values")
            return 0 if self.blank is None else self.blank
        ends = model_ends(model, batch) if self.blank is None else ()
        found = next(iter(ends), None) if self.blank is None else whole(self.blank)
        if found is None or found < 0:
            raise UserError(
                f"word_dropout feeds a blank in place of a symbol, and blank={self.blank!r} is no id (None: the end "
                "symbol of the model, if it has one): pass blank=, an id of the model's that, best, stands for nothing"
            )
        return found


word_dropout = WordDropout
