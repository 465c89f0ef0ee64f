"""From a prediction to the entry that is fed back: ids greedy or sampled; values as predicted, expected or sampled."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from freerun.arguments import Arguments, is_number, nearest, refused
from freerun.batch import Batch
from freerun.distributions import HEADS, Distribution
from freerun.distributions import Gaussian as GaussianHead
from freerun.distributions import Quantiles as QuantilesHead
from freerun.distributions import StudentT as StudentTHead
from freerun.errors import UserError, whole
from freerun.keys import uniform
from freerun.types import Scheduled

__all__ = [
    "DRAWS", "Draw", "Expected", "Gaussian", "Greedy", "Point", "QuantileSample", "Sample", "SoftArgmax", "StudentT",
    "check_width", "expected", "fitting", "gaussian", "greedy", "is_plain", "point", "quantile_sample", "resolve",
    "sample", "soft_argmax", "student_t",
]  # fmt: skip


class Draw(Protocol):
    """How a prediction becomes an entry.

    ``noise_size(vocab)`` numbers are needed for each entry (0: none); ``noise`` makes them from a key, and is a
    function of (key, row, position) alone; ``choose`` turns predictions and noise into entries.
    """

    values: ClassVar[bool]

    def noise_size(self, vocab: int) -> int: ...
    def noise(self, key: int, rows: Tensor, positions: Tensor, vocab: int) -> Tensor | None: ...
    def choose(self, outputs: Tensor, noise: Tensor | None) -> Tensor: ...


def show(self: Any) -> str:
    """A draw's signature: its name and every argument that is not the default."""
    changed = [f for f in fields(self) if getattr(self, f.name) != f.default]
    inside = ", ".join(f"{f.name}={getattr(self, f.name)!r}" for f in changed)
    name = getattr(self, "name", type(self).__name__.lower())
    return f"{name}({inside})"


class Noiseless(Arguments):
    """A draw that needs no noise."""

    def noise_size(self, vocab: int) -> int:
        """0: nothing random."""
        return 0

    def noise(self, key: int, rows: Tensor, positions: Tensor, vocab: int) -> Tensor | None:
        """None."""
        return None


@dataclass(frozen=True, repr=False)
class Greedy(Noiseless):
    """The most probable symbol, ``argmax_v outputs[v]``; ties go to the lowest id.

    >>> Greedy().choose(torch.tensor([[0.1, 2.0, 2.0]]), None)
    tensor([1])
    """

    values: ClassVar[bool] = False

    __repr__ = show

    def choose(self, outputs: Tensor, noise: Tensor | None) -> Tensor:
        """(n, vocab) logits -> (n,) ids."""
        return outputs.argmax(-1)


@dataclass(frozen=True, repr=False)
class Sample(Arguments):
    """A symbol drawn from ``softmax(outputs / temperature)``, optionally truncated to top-k and top-p.

    Args:
        temperature: > 0; below 1 sharpens.
        top_k: only the k most probable symbols (0: all).
        top_p: only the smallest set of most probable symbols whose mass reaches p, in (0, 1].
        coupling: how noise becomes a choice. ``"inverse_cdf"``: one uniform number an entry, cheap in a
            sequential loop; ``"gumbel"``: ``argmax(logits + Gumbel noise)``, a number a symbol, robust when a
            prediction moves a little between parallel passes. The law is the same.

    Raises:
        UserError: for arguments outside their range.

    >>> draw = Sample(top_k=1)
    >>> rows = positions = torch.tensor([0])
    >>> draw.choose(torch.tensor([[0.1, 2.0, 1.0]]), draw.noise(0, rows, positions, 3))
    tensor([1])
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    coupling: str = "inverse_cdf"

    values: ClassVar[bool] = False

    __repr__ = show

    def __post_init__(self) -> None:
        problems: list[str] = []
        if not is_number(self.temperature) or self.temperature <= 0:
            problems.append(f"temperature must be above 0; got {self.temperature!r}: for the argmax use draw='greedy'")
        if whole(self.top_k) is None or self.top_k < 0:
            problems.append(f"top_k must be 0 (all symbols) or more, a whole number; got {self.top_k!r}")
        if not is_number(self.top_p) or not 0 < self.top_p <= 1:
            problems.append(f"top_p must lie in (0, 1]; got {self.top_p!r}")
        if self.coupling not in ("inverse_cdf", "gumbel"):
            problems.append(f"coupling must be 'inverse_cdf' or 'gumbel'; got {self.coupling!r}")
        if problems:
            raise UserError(problems)

    def noise_size(self, vocab: int) -> int:
        """1 for the inverse CDF, a number a symbol for Gumbel noise."""
        return 1 if self.coupling == "inverse_cdf" else vocab

    def noise(self, key: int, rows: Tensor, positions: Tensor, vocab: int) -> Tensor | None:
        """(n,) uniforms or (n, vocab) Gumbel noise for entries at (rows, positions), float64."""
        if self.coupling == "inverse_cdf":
            return uniform(key, rows, positions)
        symbols = torch.arange(vocab, device=rows.device)
        u = uniform(key, rows[:, None], positions[:, None], symbols)
        # u = 0 has probability 2^-53 a number and would give -inf: the smallest positive step stands in
        return -(-u.clamp_min(2.0**-54).log()).log()

    def choose(self, outputs: Tensor, noise: Tensor | None) -> Tensor:
        """(n, vocab) logits and noise -> (n,) ids."""
        assert noise is not None
        logits = outputs.float() if outputs.dtype in (torch.bfloat16, torch.float16) else outputs
        if self.temperature != 1.0 or self.top_k or self.top_p < 1.0:
            logits = self._truncate(logits)
        if self.coupling == "gumbel":
            return (logits + noise.to(logits.dtype)).argmax(-1)
        return _inverse_cdf(logits, noise)

    def _truncate(self, logits: Tensor) -> Tensor:
        if self.temperature != 1.0:
            logits = logits / self.temperature
        if 0 < self.top_k < logits.shape[-1]:
            # by index, so that ties at the edge do not let more than k in
            dropped = torch.ones_like(logits, dtype=torch.bool).scatter_(-1, logits.topk(self.top_k, -1).indices, False)
            logits = logits.masked_fill(dropped, -torch.inf)
        if self.top_p < 1.0:
            ordered, order = torch.sort(logits, dim=-1, descending=True, stable=True)
            before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
            dropped = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= self.top_p)
            logits = logits.masked_fill(dropped, -torch.inf)
        return logits


def is_plain(draw: Draw) -> bool:
    """Whether ids are sampled without a temperature or truncation of the draw's own.

    >>> is_plain(Sample(coupling="gumbel")), is_plain(Sample(top_k=3)), is_plain(Greedy())
    (True, False, False)
    """
    return isinstance(draw, Sample) and Sample(coupling=draw.coupling) == draw


@dataclass(frozen=True, repr=False)
class SoftArgmax(Arguments):
    """A mixture of all symbols, ``sum_v softmax(alpha (outputs + g))_v e(v)``, which carries a gradient.

    Args:
        alpha: above 0, a number or a schedule; the larger, the nearer to the most probable symbol. The paper's is
            peaked, above 1, and constant or rising; at 1 the mixture is the expected embedding.
        gumbel: whether g is Gumbel noise, so that the mixture nears a sample; else g = 0.

    Only ``scheduled_sampling``, ``free_running``, ``sparse_teacher_forcing``, ``dagger`` and ``consistency`` feed it,
    with the gradient through all entries that are fed.

    What it is not: an expected value (``expected``), of which the entries are values; nor a symbol.

    Reference: Goyal, Dyer and Berg-Kirkpatrick 2017, Differentiable scheduled sampling for credit assignment, ACL,
    arXiv:1704.06970.

    >>> SoftArgmax(alpha=2.0).weights(torch.tensor([[0.5, 0.5, -100.0]]), None)
    tensor([[0.5000, 0.5000, 0.0000]])
    """

    alpha: float | Scheduled = 1.0
    gumbel: bool = False

    values: ClassVar[bool] = False
    name: ClassVar[str] = "soft_argmax"
    ranges: ClassVar[dict[str, tuple[float, float]]] = {"alpha": (1e-6, float("inf"))}

    __repr__ = show

    def problems(self) -> Iterable[str]:
        """Return what alpha cannot be."""
        if not isinstance(self.alpha, Scheduled) and not (is_number(self.alpha) and self.alpha > 0):
            yield f"alpha must be a number above 0, or a schedule; got {self.alpha!r}"

    def noise_size(self, vocab: int) -> int:
        """A number a symbol, or none."""
        return vocab if self.gumbel else 0

    def noise(self, key: int, rows: Tensor, positions: Tensor, vocab: int) -> Tensor | None:
        """(n, vocab) Gumbel noise for entries at (rows, positions), that of ``sample(coupling="gumbel")``; or None."""
        return Sample(coupling="gumbel").noise(key, rows, positions, vocab) if self.gumbel else None

    def weights(self, outputs: Tensor, noise: Tensor | None) -> Tensor:
        """(n, vocab) logits -> (n, vocab) weights that sum to 1."""
        logits = outputs.float() if outputs.dtype in (torch.bfloat16, torch.float16) else outputs
        alpha = self.alpha
        if isinstance(alpha, Scheduled):
            raise UserError(f"draw={self!r} needs the step of a training: pass a number as alpha")
        return (alpha * (logits if noise is None else logits + noise.to(logits.dtype))).softmax(-1)

    def choose(self, outputs: Tensor, noise: Tensor | None) -> Tensor:
        """(n, vocab) logits -> (n,) the heaviest symbol of each mixture."""
        return self.weights(outputs, noise).argmax(-1)


def refuse_mixture(draw: Any) -> None:
    """Refuse a draw whose entries are mixtures where symbols are needed."""
    if isinstance(draw, SoftArgmax):
        raise UserError(
            f"draw={draw!r} feeds mixtures of symbols, which scheduled_sampling, free_running, sparse_teacher_forcing, "
            "dagger and consistency do alone: use 'greedy' or 'sample'"
        )


_BLOCK = 64


def _inverse_cdf(logits: Tensor, noise: Tensor) -> Tensor:
    """The first symbol whose cumulated probability exceeds ``noise * total``; never one of probability 0."""
    mass = logits.softmax(-1)
    vocab = mass.shape[-1]
    # rounding noise to a narrower type may give 1.0, and the level must stay below the total: the largest number
    # below 1, times the total, does so for every total in either type
    noise = noise.to(mass.dtype).clamp_max(1.0 - torch.finfo(mass.dtype).eps / 2)[:, None]
    if vocab < 1024:
        cumulated = mass.cumsum(-1)
        level = noise * cumulated[:, -1:]
        # NaN logits lie beyond every symbol: the last one stands in, and the loss reports the NaN
        return torch.searchsorted(cumulated, level, right=True).squeeze(-1).clamp_max(vocab - 1)
    # one scan over blocks and one inside a block: several times cheaper than one long cumsum
    padded = torch.nn.functional.pad(mass, (0, -vocab % _BLOCK)).view(mass.shape[0], -1, _BLOCK)
    blocks = padded.sum(-1).cumsum(-1)
    level = noise * blocks[:, -1:]
    block = torch.searchsorted(blocks, level, right=True).clamp_max(blocks.shape[1] - 1)
    before = torch.where(block > 0, blocks.gather(1, (block - 1).clamp_min(0)), 0)
    chosen = padded.gather(1, block[..., None].expand(-1, -1, _BLOCK))[:, 0]
    inside = chosen.cumsum(-1)
    # the block's own sum and its scan may differ in the last bit: stay below the scan's end
    within = torch.minimum(level - before, _below(inside[:, -1:]))
    return (block * _BLOCK + torch.searchsorted(inside, within, right=True)).squeeze(-1).clamp_max(vocab - 1)


def _below(total: Tensor) -> Tensor:
    return torch.nextafter(total, torch.zeros_like(total))


@dataclass(frozen=True, repr=False)
class Point(Noiseless):
    """A real-valued prediction, fed back as predicted.

    >>> Point().choose(torch.tensor([[0.5, -1.0]]), None)
    tensor([[ 0.5000, -1.0000]])
    """

    values: ClassVar[bool] = True
    name: ClassVar[str] = "point"
    parameters: ClassVar[int] = 1

    __repr__ = show

    def choose(self, outputs: Tensor, noise: Tensor | None) -> Tensor:
        """(n, value) -> (n, value)."""
        return outputs


@dataclass(frozen=True, repr=False)
class Expected(Noiseless):
    """The mean of a head's law (of quantiles the median), fed back.

    Args:
        head: ``"gaussian"``, ``"student_t"`` or ``"quantiles"``.

    Raises:
        UserError: another head.

    >>> Expected().choose(torch.tensor([[0.5, -1.0]]), None)  # a mean and a scale
    tensor([[0.5000]])
    """

    head: str = "gaussian"

    values: ClassVar[bool] = True
    name: ClassVar[str] = "expected"

    __repr__ = show

    def __post_init__(self) -> None:
        if not isinstance(self.head, str) or self.head not in HEADS:
            raise UserError(f"head must be one of {', '.join(HEADS)}; got {self.head!r}: for none use draw='point'")

    @property
    def parameters(self) -> int:
        """Numbers per value in the head's output."""
        return HEADS[self.head]().parameters

    def choose(self, outputs: Tensor, noise: Tensor | None) -> Tensor:
        """(n, numbers * value) -> (n, value)."""
        return HEADS[self.head]().mean(outputs)


class _Sampled(Arguments):
    """A draw from the law that ``distribution`` makes of the outputs."""

    values: ClassVar[bool] = True

    @property
    def distribution(self) -> Distribution:
        raise TypeError(f"{type(self).__name__} must define the law that it draws from")  # a subclass forgot to

    @property
    def parameters(self) -> int:
        """Numbers per value in the head's output."""
        return self.distribution.parameters

    def noise_size(self, vocab: int) -> int:
        """Uniform numbers an entry; at least 2, which means that they depend on the outputs' width."""
        return max(2, vocab // self.parameters * self.distribution.noise_numbers)

    def noise(self, key: int, rows: Tensor, positions: Tensor, vocab: int) -> Tensor | None:
        """(n, value, numbers) uniforms for entries at (rows, positions), float64; ``vocab`` is the outputs' width."""
        channels = torch.arange(vocab // self.parameters, device=rows.device)[:, None]
        numbers = torch.arange(self.distribution.noise_numbers, device=rows.device)
        return uniform(key, rows[:, None, None], positions[:, None, None], channels, numbers)

    def choose(self, outputs: Tensor, noise: Tensor | None) -> Tensor:
        """(n, numbers * value) and noise -> (n, value), differentiable in the outputs."""
        assert noise is not None
        return self.distribution.sample(outputs, noise)


@dataclass(frozen=True, repr=False)
class Gaussian(_Sampled):
    """A sample of a Gaussian head, ``m + s sqrt(-2 log(1 - u1)) cos(2 pi u2)``; its gradient reaches m and s.

    >>> position = torch.tensor([0])
    >>> draw = Gaussian()
    >>> draw.choose(torch.tensor([[0.5, -30.0]]), draw.noise(0, position, position, 2)).round(decimals=2)
    tensor([[0.5000]])
    """

    name: ClassVar[str] = "gaussian"

    __repr__ = show

    @property
    def distribution(self) -> Distribution:
        """The law drawn from."""
        return GaussianHead()


@dataclass(frozen=True, repr=False)
class StudentT(_Sampled):
    """A sample of a Student-t head; its gradient reaches location, scale and degrees of freedom.

    >>> StudentT()
    student_t()
    """

    name: ClassVar[str] = "student_t"

    __repr__ = show

    @property
    def distribution(self) -> Distribution:
        """The law drawn from."""
        return StudentTHead()


@dataclass(frozen=True, repr=False)
class QuantileSample(_Sampled):
    """A sample by linear interpolation between predicted quantiles; never beyond the outer ones.

    Args:
        levels: those of the head.

    >>> QuantileSample()
    quantile_sample()
    """

    levels: tuple[float, ...] = (0.1, 0.5, 0.9)

    name: ClassVar[str] = "quantile_sample"

    __repr__ = show

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", QuantilesHead(self.levels).levels)

    @property
    def distribution(self) -> Distribution:
        """The law drawn from."""
        return QuantilesHead(self.levels)


_FEEDING = {1: "draw='point'", 2: "draw='expected' (its mean) or 'gaussian' (a sample)"}


_FEEDING[3] = (
    "draw=expected(head='student_t') or 'student_t', for quantiles draw=expected(head='quantiles') or 'quantile_sample'"
)


def check_width(draw: Any, outputs: Tensor, width: int) -> None:
    """Refuse outputs of which a draw cannot make the values that are fed back.

    Args:
        draw: any draw; one without ``parameters`` (numbers per value) is not checked.
        outputs: (..., numbers).
        width: values an entry of the history has.

    Raises:
        UserError: another number of numbers than ``parameters * width``.

    >>> check_width(Point(), torch.zeros(1, 4), 2)
    Traceback (most recent call last):
    freerun.errors.UserError: the model gives 4 numbers a position and 2 are fed back: use draw='expected' (its ...
    """
    numbers, parameters = outputs.shape[-1], getattr(draw, "parameters", None)
    if parameters is None or numbers == parameters * width:
        return
    found = numbers // width if numbers % width == 0 else 0
    use = f"use {_FEEDING[found]}" if found in _FEEDING else f"{draw!r} needs {parameters} a value"
    head = {2: "gaussian", 3: "student_t"}.get(found)
    named = f"for fr.evaluate and fr.generate name it in the model's attribute head = {head!r}, or " if head else ""
    otherwise = f"; or {named}make the model with head='point'" if numbers > width else ""
    raise UserError(f"the model gives {numbers} numbers a position and {width} are fed back: {use}{otherwise}")


greedy, sample, soft_argmax, point, expected = Greedy, Sample, SoftArgmax, Point, Expected


gaussian, student_t, quantile_sample = Gaussian, StudentT, QuantileSample


DRAWS: dict[str, type[Any]] = {
    "greedy": Greedy,
    "sample": Sample,
    "soft_argmax": SoftArgmax,
    "point": Point,
    "expected": Expected,
    "gaussian": Gaussian,
    "student_t": StudentT,
    "quantile_sample": QuantileSample,
}


def resolve(draw: str | Draw) -> Draw:
    """A draw from its name, or the draw itself.

    >>> resolve("greedy")
    greedy()
    """
    if isinstance(draw, str) and draw in DRAWS:
        return DRAWS[draw]()
    if not isinstance(draw, str | type) and hasattr(draw, "choose") and hasattr(draw, "noise"):
        return draw
    if isinstance(draw, str):
        near = nearest(draw, DRAWS)
        hint = f": did you mean {near!r}?" if near else ""
        hint = f": use {_MEANT[draw]}" if draw in _MEANT else hint
    else:
        hint = refused(draw, 2)
    raise UserError(f"draw must be one of {', '.join(DRAWS)} or a draw object; got {draw!r}{hint}")


# names from elsewhere
_MEANT = {
    **dict.fromkeys(("argmax", "max", "top1", "top_1", "best"), "'greedy'"),
    **dict.fromkeys(("multinomial", "categorical", "random", "softmax", "sampling"), "'sample'"),
    **dict.fromkeys(("nucleus", "top_p", "top-p"), "fr.draws.sample(top_p=...)"),
    **dict.fromkeys(("top_k", "top-k", "topk"), "fr.draws.sample(top_k=...)"),
    **dict.fromkeys(("gumbel", "gumbel_softmax"), "fr.draws.sample(coupling='gumbel')"),
    **dict.fromkeys(("mean", "average"), "'expected', or 'point' for a value as predicted"),
    **dict.fromkeys(("normal", "gauss"), "'gaussian'"),
    "beam": "'greedy' with beams=... of freerun.generate",
}


_AUTO: dict[bool, Any] = {True: Sample(), False: Point()}


def fitting(draw: str | Draw, batch: Batch, *, mixtures: bool = False) -> Draw:
    """The draw for a batch: ``"auto"`` samples ids and takes values as predicted; one of the other kind is refused.

    Where a method feeds no ``mixtures``, a draw of them is refused too.

    >>> import torch
    >>> ids = torch.zeros(1, 2, dtype=torch.long)
    >>> fitting("auto", Batch(ids, ids, ids == 0))
    sample()
    """
    if isinstance(draw, str) and draw == "auto":
        return _AUTO[batch.is_discrete]
    found = resolve(draw)
    if found.values == batch.is_discrete:
        kind, better = ("ids", "'sample' or 'greedy'") if batch.is_discrete else ("values", "'point'")
        raise UserError(f"draw={draw!r} does not fit targets that are {kind}: use draw={better}")
    if not mixtures:
        refuse_mixture(found)
    return found
