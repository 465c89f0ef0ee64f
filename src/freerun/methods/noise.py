"""Noise in the history, the control: random symbols, or Gaussian noise, also as large as the model's own error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from freerun.arguments import is_number
from freerun.batch import Batch
from freerun.errors import UserError, whole
from freerun.gates import Token
from freerun.keys import fold, uniform
from freerun.methods.base import SHARED, Citation, TransformMethod, eval_logits
from freerun.methods.multi_step import refuse_ids
from freerun.methods.report import replacement_counts
from freerun.objectives import Objective
from freerun.rollin import any_rank, unwrap
from freerun.schedules import Schedule

NOISES = ("uniform", "unigram", "same_sentence")


@dataclass(frozen=True, repr=False)
class TokenNoise(TransformMethod):
    """Replace each entry of the history with probability ``rate`` by a random symbol; targets stay clean.

    ``h_t = y_t`` with probability 1 - r(step), else a symbol of the noise's law. With the rate *matched* to the share
    of entries that scheduled sampling got wrong at the same step it is the control that separates "own errors" from
    "any errors". Its gate is that of scheduled sampling with ``teacher_forcing_ratio = 1 - rate``.

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
        UserError: for arguments outside their range, or noise without what it needs.

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
    feeds_own: ClassVar[bool] = False
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

    def problems(self) -> list[str]:
        """Return which arguments cannot be."""
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
        return problems + _without_match(self.rate, super().problems())

    def mix_history(self, model: Any, batch: Batch, step: int, key: int) -> tuple[Batch, dict[str, float | str]]:
        """The batch with a noisy history; no model call."""
        if not batch.is_discrete:
            raise UserError("token_noise replaces symbols, and these targets are values: they have no symbols")
        rate = self.value("rate", step, key)
        replace = batch.replaceable & ~Token()(batch, 1.0 - rate, fold(key, "gate", int(step)))
        rows, times = replace.nonzero(as_tuple=True)
        history = batch.history
        if len(rows):
            u = uniform(fold(key, "noise", int(step)), batch.row_numbers[rows], times)
            drawn = self._symbols(model, batch, rows, times, u)
            history = history.index_put((rows, times), drawn.to(history.dtype))
        report = replacement_counts(batch, history, len(rows))
        return batch.made(history=history, replaced=replace), {"rate": rate, **report, "passes": 0, "engine": "none"}

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
        size = self.vocabulary or getattr(unwrap(model), "target_vocab", None)
        if not isinstance(size, int):
            raise UserError(
                "uniform token noise needs the number of symbols: pass token_noise(vocabulary=...), or give "
                f"{type(model).__name__} the attribute target_vocab"
            )
        if not self.exclude_gold:
            return (u * size).long()
        others = (u * (size - 1)).long()
        return others + (others >= gold)


def _without_match(rate: Any, problems: Sequence[str]) -> list[str]:
    """The problems of a method, with what to do about a rate that a comparison would match."""
    hint = ": the control of an arm is fr.matched_noise(label) in fr.compare, and in a recipe an arm of [compare]"
    matched = isinstance(rate, str) and rate == "matched"
    return [problem + hint if matched and problem.startswith("rate must") else problem for problem in problems]


def with_vocabulary(method: Any, model: Any, batch: Batch) -> Any:
    """The method; of even noise over a vocabulary with the outputs' width, where the model has no ``target_vocab``."""
    uniform = getattr(method, "noise", "uniform") == "uniform" and getattr(method, "vocabulary", 0) is None
    if not uniform or isinstance(getattr(unwrap(model), "target_vocab", None), int):
        return method
    return replace(method, vocabulary=eval_logits(model, batch.select(torch.tensor([0]))).shape[-1])


def _are_counts(counts: Any) -> bool:
    fine = isinstance(counts, tuple) and all(is_number(each) and each >= 0 for each in counts)
    return fine and any(counts)


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
    chosen = (u * number).long() + 1
    position = (others.cumsum(1) >= chosen[:, None]).int().argmax(1)
    return torch.where(number > 0, batch.history[rows, position], batch.history[rows, times])


token_noise = TokenNoise


@dataclass(frozen=True, repr=False)
class GaussianNoise(TransformMethod):
    """Add noise to entries of the history; targets stay clean.

    ``h_t = y_t + std e_t``, e_t standard normal, with probability ``rate``, else ``y_t``. With ``std="matched"`` it is
    as large as the model's own one-step error at that update, channel by channel: the control that separates "own
    errors" from "any errors of that size". Its gate is that of scheduled sampling with ``teacher_forcing_ratio = 1 -
    rate``. With a ``walk`` it grows along the n entries of a row that may be replaced, as errors of a rollout do:
    ``e_t`` becomes ``w_t = n^-1/2 sum_{s <= t} e_s`` (``"values"``), or ``sum_{s <= t} w_s`` (``"velocities"``: what
    walks are the differences of the values; an entry at position 0, which has none, stays and is not counted).

    Args:
        std: of the noise, in units of the values (normalised ones, where they are); a number of 0 or more, a schedule,
            or ``"matched"`` (one more forward: the root mean square of prediction minus gold, on gold history, over the
            entries of the batch that may be replaced; a micro-batch measures its own). Of a walk that of its last step.
        rate: probability that an entry gets noise, in [0, 1]; a number or a schedule.
        walk: None, ``"values"`` or ``"velocities"``.
        objective: ``"auto"`` (MSE), or another.

    Raises:
        UserError: arguments outside their range; targets that are ids; a model that predicts a distribution, with
            ``"matched"``.

    What it is not: noise on the targets (Sanchez-Gonzalez et al. move theirs by the noise of the last position, so that
    only that of the velocity is to be undone).

    References: Sanchez-Gonzalez et al. 2020, Learning to simulate complex physics with graph networks, ICML,
    arXiv:2002.09405 (noise against the drift of rollouts); Bishop 1995 (noise as regularisation).

    >>> GaussianNoise("matched", rate=0.5)
    gaussian_noise(std='matched', rate=0.5)
    >>> GaussianNoise(3e-4, walk="velocities")
    gaussian_noise(std=0.0003, walk='velocities')
    """

    std: float | str | Schedule
    rate: float | Schedule = 1.0
    walk: str | None = None
    objective: str | Objective = "auto"

    name: ClassVar[str] = "gaussian_noise"
    summary: ClassVar[str] = "Gaussian noise on the values fed: the noise control for values"
    feeds_own: ClassVar[bool] = False
    only_for: ClassVar[tuple[str, str] | None] = ("values", "token_noise")
    ranges: ClassVar[dict[str, tuple[float, float]]] = {"std": (0.0, math.inf), "rate": (0.0, 1.0), **SHARED}
    citation: ClassVar[Citation] = Citation(
        formula="h_t = y_t + std e_t with probability rate(step), else y_t;  loss = |f(h_<t, x) - y_t|^2;  "
        "with a walk w_t = n^-1/2 sum_{s <= t} e_s (values) or sum_{s <= t} w_s (velocities) in place of e_t",
        reference="Sanchez-Gonzalez, A., Godwin, J., Pfaff, T., Ying, R., Leskovec, J. and Battaglia, P. W. (2020). "
        "Learning to simulate complex physics with graph networks. ICML. arXiv:2002.09405 (there velocities walk)",
        bibtex="""@inproceedings{sanchez2020learning,
  author    = {Sanchez-Gonzalez, Alvaro and Godwin, Jonathan and Pfaff, Tobias and Ying, Rex and Leskovec, Jure
               and Battaglia, Peter W.},
  title     = {Learning to Simulate Complex Physics with Graph Networks},
  booktitle = {International Conference on Machine Learning},
  year      = {2020}
}""",
    )

    def problems(self) -> list[str]:
        """Return which arguments cannot be."""
        problems: list[str] = []
        if self.walk not in (None, "values", "velocities"):
            problems.append(f"walk must be 'values' or 'velocities', or left out; got {self.walk!r}")
        if isinstance(self.std, str) and self.std != "matched":
            return [*problems, f"std must be a number of 0 or more, a schedule or 'matched'; got {self.std!r}"]
        return problems + _without_match(self.rate, super().problems())

    def scheduled(self) -> Any:
        """The parameters that may be schedules; a matched std is none."""
        return ((name, setting) for name, setting in super().scheduled() if (name, setting) != ("std", "matched"))

    @property
    def calls_model(self) -> bool:
        """Matched noise is measured on the model's error."""
        return self.std == "matched"

    def mix_history(self, model: Any, batch: Batch, step: int, key: int) -> tuple[Batch, dict[str, float | str]]:
        """The batch with noise on its history."""
        refuse_ids(self.name, batch)
        rate = self.value("rate", step, key)
        noisy = batch.replaceable & ~Token()(batch, 1.0 - rate, fold(key, "gate", int(step)))
        rows, times = noisy.nonzero(as_tuple=True)
        std, passes = self._std(model, batch, step, key, len(rows))
        history = batch.history
        if len(rows) and bool((std > 0).any()):
            drawn = self._steps(batch, noisy, fold(key, "noise", int(step)))
            history = history.index_put((rows, times), history[rows, times] + (std * drawn).to(history.dtype))
        report = replacement_counts(batch, history, len(rows))
        level = float(std.square().mean().sqrt())
        return batch.made(history=history, replaced=noisy), {
            "std": level, "rate": rate, **report, "passes": passes, "work": float(passes), "engine": "none",
        }  # fmt: skip

    def _steps(self, batch: Batch, noisy: Tensor, key: int) -> Tensor:
        """(n, value) noise of unit size at the n noisy entries."""
        drawn = noisy if self.walk is None else batch.replaceable.clone()
        if self.walk == "velocities":
            drawn[:, 0] = False
        rows, times = drawn.nonzero(as_tuple=True)
        normal = standard_normal(key, batch.row_numbers[rows], times, batch.history.shape[-1])
        if self.walk is None:
            return normal
        steps = normal.new_zeros(batch.history.shape).index_put((rows, times), normal)
        walk = steps.cumsum(1) / drawn.sum(1).clamp_min(1).double()[:, None, None].sqrt()
        return (walk if self.walk == "values" else (walk * drawn[..., None]).cumsum(1))[noisy]

    def _std(self, model: Any, batch: Batch, step: int, key: int, replaced: int) -> tuple[Tensor, int]:
        """(value,) or () float64 standard deviations, and the passes they took."""
        device = batch.history.device
        if self.std != "matched":
            return torch.tensor(self.value("std", step, key), dtype=torch.float64, device=device), 0
        if not any_rank(model, replaced > 0):
            return torch.zeros((), dtype=torch.float64, device=device), 0
        outputs = eval_logits(model, batch)
        if not replaced:
            return torch.zeros((), dtype=torch.float64, device=device), 1
        if outputs.shape != batch.targets.shape:
            raise UserError(
                f"std='matched' compares predictions {tuple(outputs.shape)} with targets {tuple(batch.targets.shape)}: "
                "the model predicts a distribution; set std to a number"
            )
        # where noise may fall, wherever the loss lies: the two are independent choices
        far = (outputs - batch.history)[batch.replaceable].double().square()
        std = (far.mean(0) if batch.present is None else far.nanmean(0)).sqrt()
        if not bool(std.isfinite().all()):
            raise UserError(f"std='matched' cannot be measured: the model's one-step error is {std.tolist()}")
        return std, 1


def standard_normal(key: int, rows: Tensor, times: Tensor, channels: int) -> Tensor:
    """(n, channels) standard normal numbers, a function of (key, row, position, channel), by Box and Muller."""
    which = torch.arange(channels, device=rows.device)
    first, second = (uniform(key, rows[:, None], times[:, None], which, torch.full_like(which, n)) for n in range(2))
    # u = 0 has probability 2^-53 and would be infinite
    return (-2 * first.clamp_min(2.0**-54).log()).sqrt() * torch.cos(2 * math.pi * second)


gaussian_noise = GaussianNoise
