"""Token noise: entries of the history replaced by symbols that are not the model's own. The control."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from freerun.arguments import is_number
from freerun.errors import UserError, whole
from freerun.gates import Token
from freerun.keys import fold, uniform
from freerun.methods.base import SHARED, Citation, TransformMethod, change_report
from freerun.objectives import Objective
from freerun.rollin import unwrapped
from freerun.schedules import Schedule
from freerun.types import Batch

__all__ = ["NOISES", "TokenNoise", "same_sentence", "token_noise"]

NOISES = ("uniform", "unigram", "same_sentence")


@dataclass(frozen=True, repr=False)
class TokenNoise(TransformMethod):
    """Replace each entry of the history with probability ``rate`` by a random symbol; targets stay clean.

    ``h_t = y_t`` with probability 1 - r(step), else a symbol of the noise's law. With the rate *matched* to the share
    of entries that scheduled sampling got wrong at the same step it is the control that separates "own errors" from
    "any errors". Its coins are those of scheduled sampling with ``teacher_forcing_ratio = 1 - rate``.

    Args:
        rate: probability of replacing, in [0, 1]; a number or a schedule.
        noise: ``"uniform"`` over the vocabulary, ``"unigram"`` (by frequency), or ``"same_sentence"`` (another entry
            of the same target).
        vocabulary: number of symbols, for uniform noise; default: the model's ``target_vocab``, which
            all models of freerun and all adapted ones have.
        frequencies: count of every symbol, for unigram noise.
        exclude_gold: never draw the gold symbol itself, so that ``rate`` is the share of wrong entries.
        objective: ``"auto"`` or ``"cross_entropy"``, or a function.

    Raises:
        UserError: for arguments outside their range, or noise that needs what it was not given.

    What it is not: RAML, which changes targets too; nor word dropout (Bowman et al. 2016), which feeds an unknown
    symbol.

    References: Bengio et al. 2015 ("uniform scheduled sampling"); Liu et al. 2021, arXiv:2107.10427 (same sentence).

    >>> ids = torch.arange(6).view(1, 6)
    >>> model = lambda batch: torch.zeros(batch.size, batch.time, 9)
    >>> noisy = TokenNoise(1.0, vocabulary=9, exclude_gold=True).transform(model, Batch(ids), step=0)
    >>> bool((noisy.history != ids).all())
    True
    """

    rate: float | Schedule
    noise: str = "uniform"
    vocabulary: int | None = None
    frequencies: tuple[float, ...] | None = None
    exclude_gold: bool = False
    objective: str | Objective = "auto"

    name: ClassVar[str] = "token_noise"
    summary: ClassVar[str] = "random symbols in the history: the noise control"
    only_for: ClassVar[tuple[str, str] | None] = ("symbols", "gaussian_noise")
    ranges: ClassVar[dict[str, tuple[float, float]]] = {"rate": (0.0, 1.0), **SHARED}
    citation: ClassVar[Citation] = Citation(
        formula="h_t = y_t with probability 1 - r(step), else a symbol drawn from the noise's law;  "
        "loss = -sum_t log p(y_t | h_<t, x)",
        reference="The 'uniform scheduled sampling' control of Bengio et al. (2015), arXiv:1506.03099; noise from the "
        "same sentence: Liu, Y., Meng, F., Chen, Y., Xu, J. and Zhou, J. (2021). Confidence-aware scheduled sampling "
        "for neural machine translation. Findings of ACL. arXiv:2107.10427",
        bibtex="""@inproceedings{liu2021confidence,
  author    = {Liu, Yijin and Meng, Fandong and Chen, Yufeng and Xu, Jinan and Zhou, Jie},
  title     = {Confidence-Aware Scheduled Sampling for Neural Machine Translation},
  booktitle = {Findings of the Association for Computational Linguistics: ACL-IJCNLP},
  year      = {2021}
}""",
    )

    def __post_init__(self) -> None:
        if isinstance(self.frequencies, list):  # frozen: a tuple can be hashed
            object.__setattr__(self, "frequencies", tuple(self.frequencies))
        problems: list[str] = []
        if self.noise not in NOISES:
            problems.append(f"noise must be one of {', '.join(NOISES)}; got {self.noise!r}")
        if self.noise == "unigram" and self.frequencies is None:
            problems.append("noise='unigram' needs frequencies: the count of every symbol in the training targets")
        if self.vocabulary is not None and (whole(self.vocabulary) is None or self.vocabulary < 2):
            problems.append(f"vocabulary must be a number of symbols, at least 2; got {self.vocabulary!r}")
        if self.frequencies is not None and not _are_counts(self.frequencies):
            problems.append("frequencies must be a tuple of counts of 0 or more, one for every symbol, not all 0")
        problems += self.problems()
        if problems:
            raise UserError(problems)

    @property
    def asks_model(self) -> bool:
        """Noise is drawn without the model."""
        return False

    def feed(self, model: Any, batch: Batch, step: int, key: int) -> tuple[Batch, dict[str, float | str]]:
        """The batch with a noisy history; no model call."""
        if not batch.is_discrete:
            raise UserError("token_noise replaces symbols, and these targets are values: they have no symbols")
        rate = self.value("rate", step)
        replace = batch.replaceable & ~Token()(batch, 1.0 - rate, fold(key, "gate", int(step)))
        rows, times = replace.nonzero(as_tuple=True)
        history = batch.history
        if len(rows):
            u = uniform(fold(key, "noise", int(step)), batch.row_numbers[rows], times)
            drawn = self._symbols(model, batch, rows, times, u)
            history = history.index_put((rows, times), drawn.to(history.dtype))
        report = change_report(batch, history, len(rows))
        return batch.made(history=history), {"rate": rate, **report, "passes": 0, "engine": "none"}

    def _symbols(self, model: Any, batch: Batch, rows: Tensor, times: Tensor, u: Tensor) -> Tensor:
        gold = batch.history[rows, times]
        if self.noise == "same_sentence":
            return same_sentence(batch, rows, times, u, self.exclude_gold)
        if self.noise == "unigram":
            assert self.frequencies is not None
            if int(gold.max()) >= len(self.frequencies):
                raise UserError(
                    f"frequencies hold {len(self.frequencies)} symbols, and the history has id {int(gold.max())}: give "
                    "the count of every symbol"
                )
            counts = torch.tensor(self.frequencies, dtype=torch.float64, device=u.device)
            return _by_frequency(counts / counts.sum(), gold, u, self.exclude_gold)
        size = self.vocabulary or getattr(unwrapped(model), "target_vocab", None)
        if not isinstance(size, int):
            raise UserError(
                "uniform token noise needs the number of symbols: pass token_noise(vocabulary=...), or give "
                f"{type(model).__name__} the attribute target_vocab"
            )
        if not self.exclude_gold:
            return (u * size).long()
        others = (u * (size - 1)).long()
        return others + (others >= gold)


def _are_counts(given: Any) -> bool:
    fine = isinstance(given, tuple) and all(is_number(each) and each >= 0 for each in given)
    return fine and any(given)


def _by_frequency(mass: Tensor, gold: Tensor, u: Tensor, exclude_gold: bool) -> Tensor:
    """Symbols by inverse CDF; with gold left out its stretch of the unit interval is jumped over."""
    cumulated = mass.cumsum(0)
    level = u * cumulated[-1]
    if exclude_gold:
        share = mass[gold]
        if bool((share >= cumulated[-1]).any()):
            raise UserError("unigram noise without gold needs at least two symbols with a count above 0")
        level = u * (cumulated[-1] - share)
        level = level + torch.where(level >= cumulated[gold] - share, share, 0.0)
    level = torch.minimum(level, torch.nextafter(cumulated[-1], cumulated.new_zeros(())))
    return torch.searchsorted(cumulated, level, right=True)


def same_sentence(batch: Batch, rows: Tensor, times: Tensor, u: Tensor, exclude_gold: bool) -> Tensor:
    """Another entry of the same row, evenly; an entry without any candidate keeps its gold."""
    others = batch.replaceable[rows].clone()  # (n, time)
    others[torch.arange(len(rows), device=rows.device), times] = False
    if exclude_gold:
        others &= batch.history[rows] != batch.history[rows, times][:, None]
    number = others.sum(1)
    place = (u * number).long() + 1
    position = (others.cumsum(1) >= place[:, None]).int().argmax(1)
    return torch.where(number > 0, batch.history[rows, position], batch.history[rows, times])


token_noise = TokenNoise
