"""Generation as one would write it by hand: prefixes as tuples, sorted lists, one row at a time."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from freerun.batch import Batch
from freerun.keys import uniform

Rule = Callable[[tuple[int, ...]], list[float]]  # prefix -> log-probability of each symbol


def log_probs_of(model: Callable[[Batch], Tensor], batch: Batch, row: int) -> Rule:
    """The rule of one row, by a full forward of that row alone for every prefix."""
    one = batch.select(torch.tensor([row]))
    known: dict[tuple[int, ...], list[float]] = {}

    def rule(prefix: tuple[int, ...]) -> list[float]:
        if prefix not in known:
            history = torch.tensor([[*prefix, 0]])
            prefixed = Batch(torch.zeros_like(history), history, history >= 0, context=one.context)
            with torch.no_grad():
                known[prefix] = model(prefixed)[0, len(prefix)].log_softmax(-1).tolist()
        return known[prefix]

    return rule


@dataclass(frozen=True)
class Hypothesis:
    entries: tuple[int, ...]  # with the end symbol, where there is one
    score: float
    rank: float


def hypothesis(entries: tuple[int, ...], score: float, penalty: float) -> Hypothesis:
    return Hypothesis(entries, score, score / ((5 + len(entries)) / 6) ** penalty)


def everything(rule: Rule, vocab: int, length: int, end: int, penalty: float) -> list[Hypothesis]:
    """Every string that ends within the length, and every one of full length that does not, best first."""
    found: list[Hypothesis] = []
    for n in range(1, length + 1):
        for entries in product(range(vocab), repeat=n):
            whole = entries[-1] == end or n == length
            if whole and end not in entries[:-1]:
                score = sum(rule(entries[:i])[symbol] for i, symbol in enumerate(entries))
                found.append(hypothesis(entries, score, penalty))
    return sorted(found, key=lambda h: -h.rank)


def beam_search(rule: Rule, beams: int, length: int, end: int | None, penalty: float, n_best: int) -> list[Hypothesis]:
    """Length-synchronous beam search with a pool, without any shortcut."""
    alive: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    pool: list[Hypothesis] = []
    for t in range(length):
        candidates = [
            ((*prefix, symbol), score + gained) for prefix, score in alive for symbol, gained in enumerate(rule(prefix))
        ]
        candidates.sort(key=lambda pair: -pair[1])  # stable: ties to the lower place
        candidates = [pair for pair in candidates[: 2 * beams] if pair[1] > -torch.inf]
        pool += [hypothesis(entries, score, penalty) for entries, score in candidates[:beams] if entries[-1] == end]
        alive = [pair for pair in candidates if pair[0][-1] != end][:beams]
        if t + 1 == length:
            pool += [hypothesis(entries, score, penalty) for entries, score in alive]
        if beams == 1 and pool:  # one beam is greedy, done with its first end
            break
    return sorted(pool, key=lambda h: -h.rank)[:n_best]


class Tree:
    """Logits that are a random function of (context, whole prefix); another for each prefix. A forward only."""

    def __init__(self, vocab: int, key: int = 0, spread: float = 4.0) -> None:
        self.vocab, self.key, self.spread = vocab, key, spread

    def logits(self, context: Tensor, code: Tensor) -> Tensor:
        symbols = torch.arange(self.vocab)
        return self.spread * uniform(self.key, context[..., None], code[..., None], symbols)

    def __call__(self, batch: Batch) -> Tensor:
        code = torch.zeros(batch.size, dtype=torch.int64)
        outputs = []
        for t in range(batch.time):
            outputs.append(self.logits(batch.context, code))
            code = code * (self.vocab + 1) + batch.history[:, t] + 1
        return torch.stack(outputs, 1)


class SteppedTree(Tree):
    """The same, position by position; counts the rows it steps."""

    stepped = 0

    def start(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return batch.context, torch.zeros(batch.size, dtype=torch.int64)

    def embed(self, entries: Tensor) -> Tensor:
        return entries + 1

    def step(self, state: tuple[Tensor, Tensor], inputs: Tensor) -> tuple[Tensor, Tensor]:
        self.stepped += inputs.shape[0]
        return state[0], state[1] * (self.vocab + 1) + inputs

    def output(self, state: tuple[Tensor, Tensor], rows: Tensor | None = None) -> Tensor:
        outputs = self.logits(*state)
        return outputs if rows is None else outputs[rows]

    def select(self, state: tuple[Tensor, Tensor], rows: Tensor) -> tuple[Tensor, Tensor]:
        return state[0][rows], state[1][rows]
