"""Worlds with exact answers: automata whose every conditional, divergence and information is computed, and a ring."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from freerun.arguments import COUNT, Arguments, Range, brief, rule_field
from freerun.batch import Batch, must_be
from freerun.errors import UserError, refuse
from freerun.keys import fold, uniform
from freerun.metrics.accumulation import accumulated_error, divergence, excess_accumulated_error

_UNIT = Range(0, 1)
_OPEN = Range(0, 1, "()")


@dataclass(frozen=True, eq=False)
class Automaton:
    """A probabilistic automaton: the state decides the next symbol's probabilities, and the symbol the next state.

    ``P(y_t | y_<t) = emission[s_t, y_t]``, ``s_1 = 0``, ``s_{t+1} = successor[s_t, y_t]``. It is a model of ids, too
    (log-probabilities, with the methods of a Stepper): anything that takes a model takes it, as model or as oracle.

    Args:
        emission: (states, symbols) float64: probabilities; every row sums to 1.
        successor: (states, symbols) int64: the next state.

    Raises:
        UserError: shapes, probabilities or states that cannot be.

    >>> coin = Automaton(torch.tensor([[0.5, 0.5], [1.0, 0.0]]), torch.tensor([[0, 1], [0, 0]]))  # no two ones in a row
    >>> coin.conditionals(torch.tensor([[1, 0, 1]]))[0]
    tensor([[0.5000, 0.5000],
            [1.0000, 0.0000],
            [0.5000, 0.5000]], dtype=torch.float64)

    What it is not: a hidden Markov model, whose conditionals depend on all of the past.
    """

    emission: Tensor
    successor: Tensor
    __repr__ = brief

    def __post_init__(self) -> None:
        object.__setattr__(self, "emission", torch.as_tensor(self.emission, dtype=torch.float64))
        object.__setattr__(self, "successor", torch.as_tensor(self.successor, dtype=torch.int64))
        shape = tuple(self.emission.shape)
        if len(shape) != 2 or 0 in shape or tuple(self.successor.shape) != shape:
            raise UserError(
                f"emission and successor must both be (states, symbols); got {shape} and {tuple(self.successor.shape)}"
            )
        refuse(_law_problems("emission", self.emission))
        if not bool(((self.successor >= 0) & (self.successor < shape[0])).all()):
            raise UserError(f"successor must hold states from 0 to {shape[0] - 1}")

    @property
    def symbols(self) -> int:
        """Number of symbols."""
        return self.emission.shape[1]

    def states(self, history: Tensor) -> Tensor:
        """(rows, time) int64: the state before each position of (rows, time) ids."""
        if history.numel() and int(history.max()) >= self.symbols:
            raise UserError(f"this automaton has the symbols 0 to {self.symbols - 1}; got {int(history.max())}")
        state = torch.zeros(len(history), dtype=torch.int64)
        states = [state]
        for symbol in history[:, :-1].cpu().unbind(1):
            state = self.successor[state, symbol]
            states.append(state)
        return torch.stack(states, 1)[:, : history.shape[1]]

    def conditionals(self, history: Tensor) -> Tensor:
        """``P(. | history[:, :t])`` at every position t: (rows, time, symbols) float64."""
        return self.emission[self.states(history)]

    def __call__(self, batch: Batch) -> Tensor:
        """Log-probabilities (batch, time, symbols)."""
        return self.conditionals(batch.history).log().to(batch.history.device)

    def start(self, batch: Batch) -> Tensor:
        """The first state of each row; the methods of ``freerun.types.Stepper`` begin here."""
        return torch.zeros(batch.size, dtype=torch.int64)

    def embed(self, entries: Tensor) -> Tensor:
        """The ids themselves."""
        return entries

    def step(self, state: Tensor, inputs: Tensor) -> Tensor:
        """The states after a symbol each."""
        return self.successor[state, inputs.cpu()]

    def output(self, state: Tensor, rows: Tensor | None = None) -> Tensor:
        """Log-probabilities of the next symbols."""
        return self.emission[state if rows is None else state[rows.cpu()]].log()

    def select(self, state: Tensor, rows: Tensor) -> Tensor:
        """The states of some rows."""
        return state[rows.cpu()]

    def sample(self, count: int, length: int, seed: int = 0) -> Batch:
        """Draw ``count`` sequences of ``length`` symbols: a Batch of targets.

        The same seed draws the same, and a longer sequence begins with the shorter one.

        >>> trap_chain()[0].sample(2, 5, seed=3).targets
        tensor([[0, 0, 0, 0, 0],
                [0, 0, 0, 0, 0]])
        """
        COUNT.check(count=count, length=length)
        return Batch(self.walk(uniform(fold(seed, "world"), torch.arange(count)[:, None], torch.arange(length))))

    def walk(self, noise: Tensor) -> Tensor:
        """(rows, time) symbols drawn with these uniform numbers, by inverse cumulative distribution."""
        state, symbols = torch.zeros(len(noise), dtype=torch.int64), list[Tensor]()
        for u in noise.unbind(1):
            symbols.append(_drawn(self.emission[state], u))
            state = self.successor[state, symbols[-1]]
        return torch.stack(symbols, 1)

    def occupancy(self, length: int) -> Tensor:
        """(length, states): probability of each state before each position, by dynamic programming."""
        COUNT.check(length=length)
        return _pair_occupancy(self, self, length).sum(2)

    def entropies(self, length: int) -> Tensor:
        """``H(y_t | y_<t)`` in nats at every position: (length,)."""
        return self.occupancy(length) @ _entropy(self.emission)

    def information(self, length: int) -> Tensor:
        """``I(y_t; y_<t) = H(y_t) - H(y_t | y_<t)`` in nats at every position: (length,).

        Times ``1 - teacher_forcing_ratio`` it bounds the KL divergence that scheduled sampling converges to (two-step
        chains; docs/diagnostics.md).

        >>> xor = chain([0.5, 0.5], [[0.0, 1.0], [1.0, 0.0]])
        >>> xor.information(3).round(decimals=4)
        tensor([0.0000, 0.6931, 0.6931], dtype=torch.float64)
        """
        occupancy = self.occupancy(length)
        return _entropy(occupancy @ self.emission) - occupancy @ _entropy(self.emission)


@dataclass(frozen=True, eq=False)
class ExactError:
    """Expected divergence of a model from a world at every position, exactly.

    Args:
        own: (T,) on contexts that the model generates, sampling.
        gold: (T,) on contexts of the world.
    """

    own: Tensor
    gold: Tensor
    __repr__ = brief

    @property
    def acc_err(self) -> Tensor:
        """(T,) AccErr at every length; see ``freerun.metrics.accumulated_error``."""
        return accumulated_error(self.own, self.gold)

    @property
    def ex_acc_err(self) -> Tensor:
        """(T,) ExAccErr in percent at every length; see ``freerun.metrics.excess_accumulated_error``."""
        return excess_accumulated_error(self.own, self.gold)

    @property
    def eb_c(self) -> Tensor:
        """(T,) EB-C of He et al. 2021 (arXiv:1905.10617): own / gold; NaN where the model has no error on gold."""
        return self.own / self.gold


def exact_error(world: Automaton, model: Automaton, length: int, kind: str = "forward") -> ExactError:
    """Divergence of a model automaton from a world on both kinds of context, by dynamic programming.

    ``own[t] = E_{y_<t ~ model} D(world(. | y_<t), model(. | y_<t))``, ``gold[t]`` the same with ``y_<t ~ world``: sums
    over the joint states of both automata.

    Args:
        world: the oracle.
        model: over the same symbols.
        length: T.
        kind: see ``freerun.metrics.divergence``.

    Raises:
        UserError: other symbols.

    >>> world, model = trap_chain()
    >>> exact_error(world, model, 200).ex_acc_err[[9, 49, 199]].round()
    tensor([ 385., 1341., 1928.], dtype=torch.float64)
    """
    if model.symbols != world.symbols:
        raise UserError(f"world and model must have the same symbols; got {world.symbols} and {model.symbols}")
    shape = len(world.emission), len(model.emission), world.symbols
    pairs = [law.expand(shape).log() for law in (world.emission[:, None], model.emission[None])]
    each = divergence(pairs[0], pairs[1], kind)
    own, gold = (_pair_occupancy(world, model, length, roll_in=roll_in) for roll_in in ("model", "world"))
    # a state that is never reached adds nothing, however wrong the model is there
    sums = [torch.where(reached > 0, reached * each, 0.0).sum((1, 2)) for reached in (own, gold)]
    return ExactError(*sums)


def _pair_occupancy(world: Automaton, model: Automaton, length: int, roll_in: str = "world") -> Tensor:
    """(length, world states, model states): probability of both states before each position."""
    shape = len(world.emission), len(model.emission)
    policy = (world.emission[:, None] if roll_in == "world" else model.emission[None]).expand(*shape, world.symbols)
    after = world.successor[:, None] * shape[1] + model.successor[None]  # (world states, model states, symbols)
    now = torch.zeros(shape, dtype=torch.float64)
    now[0, 0] = 1.0
    steps = [now]
    for _ in range(length - 1):
        flow = (now[..., None] * policy).flatten()
        now = torch.zeros(shape[0] * shape[1], dtype=torch.float64).index_add_(0, after.flatten(), flow).view(shape)
        steps.append(now)
    return torch.stack(steps)


def chain(start: Sequence[float] | Tensor, transition: Sequence[Sequence[float]] | Tensor) -> Automaton:
    """A Markov chain: ``P(y_1) = start``, ``P(y_t | y_<t) = transition[y_{t-1}]``.

    Args:
        start: (symbols,) probabilities of the first symbol.
        transition: (symbols, symbols) probabilities of the next one.

    >>> chain([1.0, 0.0], [[0.0, 1.0], [1.0, 0.0]]).sample(1, 4).targets
    tensor([[0, 1, 0, 1]])
    """
    first, law = (torch.as_tensor(each, dtype=torch.float64) for each in (start, transition))
    if first.dim() != 1 or law.shape != (len(first), len(first)):
        raise UserError(
            f"start must be (symbols,) and transition (symbols, symbols); got {tuple(first.shape)} and "
            f"{tuple(law.shape)}"
        )
    # state 0 is the beginning, state v + 1 follows symbol v
    return Automaton(torch.cat([first[None], law]), torch.arange(1, len(first) + 1).repeat(len(first) + 1, 1))


def trap_chain() -> tuple[Automaton, Automaton]:
    """The trap chain, world and model: the world leaves symbol 1 half of the time, the model in 4 % of the steps.

    The world enters it with probability .001 a step and the model with .01; both begin as the world does. Errors
    accumulate: ExAccErr is 385 % at length 10, 1341 % at 50 and 1928 % at 200.
    """
    start = [0.999, 0.001]
    return chain(start, [start, [0.5, 0.5]]), chain(start, [[0.99, 0.01], [0.04, 0.96]])


def random_automaton(
    states: int = 8, symbols: int = 4, *, entropy: float = 0.7, length: int = 20, seed: int = 0
) -> Automaton:
    """A random automaton of a chosen entropy: successors uniform, emissions ``softmax(z / temperature)``, z normal.

    Args:
        states: their number.
        symbols: their number.
        entropy: mean of ``H(y_t | y_<t)`` over ``length`` positions, in nats: above 0, below log(symbols); the
            temperature is found by bisection.
        length: see ``entropy``.
        seed: of successors and emissions.

    Raises:
        UserError: an entropy that cannot be reached.

    >>> round(float(random_automaton(entropy=0.5, length=30).entropies(30).mean()), 6)
    0.5
    """
    refuse(COUNT.problems(states=states, symbols=symbols, length=length))
    top = float(torch.tensor(float(symbols)).log())
    Range(0, top, "()", hint="it lies between 0 and log(symbols) nats").check(entropy=entropy)
    cells = torch.arange(states)[:, None], torch.arange(symbols)
    successor = (uniform(fold(seed, "successor"), *cells) * states).long()
    normal = torch.erfinv(2 * uniform(fold(seed, "emission"), *cells).clamp(1e-12, 1 - 1e-12) - 1) * 2**0.5

    def at(inverse: float) -> Automaton:
        return Automaton((normal * inverse).softmax(1), successor)

    low, high = 0.0, 1.0  # inverse temperatures; the entropy falls with them
    while float(at(high).entropies(length).mean()) > entropy:
        low, high = high, 2 * high
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if float(at(middle).entropies(length).mean()) > entropy else (low, middle)
    return at(high)


@dataclass(frozen=True, eq=False)
class Observed:
    """Labels that follow an automaton, and a noisy source: the task of labelling with every answer exact.

    ``y`` as the automaton draws it; ``x_t = y_t`` with probability ``right``, else another symbol, uniformly. The task
    is online: position t has x up to t, and history. ``right = 1 / symbols`` tells nothing, 1 everything.

    Args:
        automaton: of the labels.
        right: probability that the source shows the label.

    Raises:
        UserError: a probability out of range; one symbol alone.

    >>> world = Observed(random_automaton(entropy=0.7, length=10), right=0.5)
    >>> batch = world.sample(2, 10)
    >>> world.information(batch.context["source"]).shape
    torch.Size([2, 10])
    """

    automaton: Automaton
    right: float
    __repr__ = brief

    def __post_init__(self) -> None:
        problems = _UNIT.problems(right=self.right)
        refuse(problems if self.automaton.symbols > 1 else [*problems, "a noisy source needs at least 2 symbols"])

    @property
    def emission(self) -> Tensor:
        """(symbols, symbols) ``P(x_t | y_t)``."""
        symbols = self.automaton.symbols
        other = (1 - self.right) / (symbols - 1)
        return torch.eye(symbols, dtype=torch.float64) * (self.right - other) + other

    def sample(self, count: int, length: int, seed: int = 0) -> Batch:
        """Draw ``count`` sequences: labels in ``targets``, ``context`` with source and source_mask (count, length)."""
        COUNT.check(count=count, length=length)
        return self.walks(seed, "observed", (count, length))

    def walks(self, seed: int, name: str, shape: tuple[int, int]) -> Batch:
        """``sample`` with random numbers of its own name."""
        cells = torch.arange(shape[0])[:, None], torch.arange(shape[1])
        moves, shows = (uniform(fold(seed, name, what), *cells) for what in ("label", "source"))
        targets = self.automaton.walk(moves)
        source = _drawn(self.emission[targets], shows)
        return Batch(targets, context={"source": source, "source_mask": torch.ones_like(source, dtype=torch.bool)})

    def conditionals(self, history: Tensor, source: Tensor) -> Tensor:
        """``P(y_t | y_<t, x_<=t)`` on (rows, time) labels and observations: (rows, time, symbols)."""
        joint = self.automaton.conditionals(history) * self.emission.T[source.cpu()]
        return joint / joint.sum(2, keepdim=True)

    def __call__(self, batch: Batch) -> Tensor:
        """Log-probabilities of ``conditionals``, so that a world is a model and an oracle: (batch, time, symbols)."""
        return self.conditionals(batch.history, batch.context["source"][:, : batch.time]).log().to(batch.history.device)

    def filtered(self, source: Tensor) -> Tensor:
        """The exact filter ``P(y_t | x_<=t)`` by the forward algorithm: (rows, time, symbols).

        Its largest entries are the best that any labeller without history, and so any free run, can do.
        """
        return torch.stack([joint.sum(1) for joint in self._joints(source)], 1)

    def information(self, source: Tensor) -> Tensor:
        """``I(y_t; y_<t | x_<=t)`` in nats at each position of these sources, (rows, time); its mean estimates theirs.

        ``H(y_t | x_<=t) - E H(y_t | s_t, x_<=t)``, s_t the state that ``y_<t`` leads to: exact for each source.
        """
        found: list[Tensor] = []
        for joint in self._joints(source):
            alone = joint.sum(2)
            known = (alone * _entropy(joint / alone[..., None].clamp_min(1e-300))).sum(1)
            found.append(_entropy(joint.sum(1)) - known)
        return torch.stack(found, 1)

    def _joints(self, source: Tensor) -> Iterator[Tensor]:
        """``P(s_t, y_t | x_<=t)`` at each position: (rows, states, symbols)."""
        emission, after = self.automaton.emission, self.automaton.successor.flatten()
        must_be("rows, time", "int64", source=source)
        if source.numel() and not 0 <= int(source.min()) <= int(source.max()) < emission.shape[1]:
            raise UserError(
                f"sources hold the symbols 0 to {emission.shape[1] - 1}; got {int(source.min())} to {int(source.max())}"
            )
        belief = torch.zeros(len(source), len(emission), dtype=torch.float64)
        belief[:, 0] = 1.0
        for seen in source.cpu().unbind(1):
            joint = belief[..., None] * emission * self.emission.T[seen][:, None]
            joint = joint / joint.sum((1, 2), keepdim=True)
            yield joint
            belief = torch.zeros_like(belief).index_add_(1, after, joint.flatten(1))


@dataclass(frozen=True)
class StickyRing(Arguments):
    """Labelling a walk on a ring while it is observed: the label stays, or moves to a neighbour; the source is noisy.

    ``y_1`` uniform; ``y_t = y_{t-1}`` with probability ``stay``, else a neighbour on the ring; ``x_t = y_t`` with
    probability ``right``, else another label, uniformly. The task is online: position t has x up to t, and history.

    Args:
        states: of the ring, and symbols of the source.
        stay: probability of staying.
        right: probability that the source shows the label.

    Raises:
        UserError: values out of range, all at once.

    With gold history the best labeller needs ``y_{t-1}`` and ``x_t`` alone, and hardly the source; running freely it
    has to filter. It is where scheduled sampling clearly pays.
    """

    states: int = rule_field(Range(3, 10_000), 8)
    stay: float = rule_field(_OPEN, 0.9)
    right: float = rule_field(_OPEN, 0.43)
    __repr__ = brief

    @property
    def transition(self) -> Tensor:
        """(states, states) ``P(y_t | y_{t-1})``."""
        here = torch.eye(self.states, dtype=torch.float64)
        return self.stay * here + (1 - self.stay) / 2 * (here.roll(1, 1) + here.roll(-1, 1))

    @property
    def world(self) -> Observed:
        """The ring as a chain that is observed."""
        return Observed(chain([1 / self.states] * self.states, self.transition), self.right)

    def sample(self, count: int, length: int = 60, seed: int = 0) -> Batch:
        """Draw ``count`` walks: labels in ``targets``, and ``context`` with source and source_mask (count, length).

        >>> batch = StickyRing().sample(2, 5, seed=1)
        >>> batch.targets.shape, batch.context["source"].shape
        (torch.Size([2, 5]), torch.Size([2, 5]))
        """
        COUNT.check(count=count, length=length)
        return self.world.walks(seed, "ring", (count, length))

    def conditionals(self, history: Tensor, source: Tensor) -> Tensor:
        """``P(y_t | y_<t, x_<=t)`` on (rows, time) labels and observations: (rows, time, states)."""
        return self.world.conditionals(history, source)

    def __call__(self, batch: Batch) -> Tensor:
        """Log-probabilities of ``conditionals``, so that a world is a model and an oracle: (batch, time, states)."""
        return self.world(batch)

    def filtered(self, source: Tensor) -> Tensor:
        """The exact filter ``P(y_t | x_<=t)``, see ``Observed.filtered``: (rows, time, states)."""
        return self.world.filtered(source)

    def information(self, source: Tensor) -> Tensor:
        """``I(y_t; y_<t | x_<=t)`` in nats, see ``Observed.information``: (rows, time)."""
        return self.world.information(source)


def _law_problems(name: str, law: Tensor) -> list[str]:
    fair = bool((law >= 0).all()) and bool(((law.sum(-1) - 1).abs() < 1e-9).all())
    return [] if fair else [f"{name} must hold probabilities, every row with the sum 1; got {law.tolist()}"[:300]]


def _entropy(law: Tensor) -> Tensor:
    return torch.special.entr(law).sum(-1)


def _drawn(law: Tensor, u: Tensor) -> Tensor:
    """Choices (...,) from laws (..., n) by inverse cumulative distribution; what has probability 0 is never chosen."""
    chosen = (law.cumsum(-1) <= u[..., None]).sum(-1)
    # rounding may leave the last sum below 1
    last = law.shape[-1] - 1 - (law > 0).flip(-1).long().argmax(-1)
    return torch.minimum(chosen, last)
