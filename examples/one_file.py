"""Scheduled sampling in one file, with torch alone: batch, gate, roll-in, loss, free run, paired interval.

This is the idea without the library: every line of it can be explained on a board. freerun does the same, entry for
entry (a test holds both equal), for any model, faster, and with what a careful comparison needs.

Run: python examples/one_file.py --updates 30 --seeds 2 [--updates 400 --seeds 5]
"""

import argparse
import hashlib
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# ----------------------------------------------------------------------------------------------------------------------
# Randomness. A number is a function of (key, row, position), not of what was drawn before: the same row gets the same
# decision in any batch, on any machine, and after a restart.

MASK, GOLDEN, M1, M2 = (1 << 64) - 1, 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def scrambled(value: int) -> int:
    """The finaliser of SplitMix64: 64 bits in, 64 bits out that look random."""
    value = ((value ^ (value >> 30)) * M1) & MASK
    value = ((value ^ (value >> 27)) * M2) & MASK
    return value ^ (value >> 31)


def fold(key: int, *labels: int | str) -> int:
    """A new key from a key and labels: fold(seed, "gate", step)."""
    state = scrambled((key + GOLDEN) & MASK)
    for label in labels:
        word = label if isinstance(label, int) else hashed(label)
        state = scrambled((state + GOLDEN + scrambled(word ^ GOLDEN)) & MASK)
    return state >> 1


def hashed(word: str) -> int:
    """64 bits of a word."""
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")


def uniform(key: int, rows: Tensor, positions: Tensor) -> Tensor:
    """A number in [0, 1) for every row and position."""
    state: Tensor = torch.tensor(signed(scrambled((key + GOLDEN) & MASK)))
    for counter in (rows, positions):
        value = state + (counter + 1) * signed(GOLDEN)
        value = (value ^ ((value >> 30) & 0x3FFFFFFFF)) * signed(M1)
        value = (value ^ ((value >> 27) & 0x1FFFFFFFFF)) * signed(M2)
        state = value ^ ((value >> 31) & 0x1FFFFFFFF)
    return ((state >> 11) & ((1 << 53) - 1)).double() * 2.0**-53


def signed(number: int) -> int:
    """The same 64 bits as torch's int64."""
    return number - (1 << 64) if number >> 63 else number


# ----------------------------------------------------------------------------------------------------------------------
# Data. A row is a start value and the path of a chaotic map from there, in symbols: x -> 3.9 x (1 - x), twelve levels.

LEVELS, LENGTH = 12, 10


def make_batch(size: int, seed: int) -> dict[str, Tensor]:
    """Sources (batch, 4): the first symbols; targets (batch, LENGTH): what follows; mask: all count."""
    x = torch.rand(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    path = []
    for _ in range(4 + LENGTH):
        x = 3.9 * x * (1 - x)
        path.append((x * LEVELS).long().clamp_max(LEVELS - 1))
    symbols = torch.stack(path, 1)
    targets = symbols[:, 4:]
    return {"source": symbols[:, :4], "targets": targets, "mask": torch.ones_like(targets, dtype=torch.bool)}


# ----------------------------------------------------------------------------------------------------------------------
# Model. A decoder step: the previous entry and a state in, logits and the next state out.


class Decoder(nn.Module):
    """A GRU encoder whose last state begins a GRU decoder; symbol LEVELS begins a row."""

    def __init__(self, size: int = 32) -> None:
        super().__init__()
        self.embedding = nn.Embedding(LEVELS + 1, size)
        self.encoder, self.cell = nn.GRU(size, size, batch_first=True), nn.GRUCell(size, size)
        self.out = nn.Linear(size, LEVELS)

    def start(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """The first entries to feed, and the first state."""
        _, state = self.encoder(self.embedding(source))
        return torch.full((len(source),), LEVELS), state[0]

    def step(self, entries: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the next symbol, and the next state."""
        state = self.cell(self.embedding(entries), state)
        return self.out(state), state


# ----------------------------------------------------------------------------------------------------------------------
# Scheduled sampling: a gate keeps gold with probability `ratio`, a draw turns a prediction into a symbol.


def gate(mask: Tensor, ratio: float, key: int) -> Tensor:
    """keep, (batch, time) bool: True where the gold entry is fed. Entries that do not count are never replaced."""
    size, time = mask.shape
    return (uniform(key, torch.arange(size)[:, None], torch.arange(time)) < ratio) | ~mask


def draw(logits: Tensor, u: Tensor) -> Tensor:
    """One symbol a row from softmax(logits): the first whose cumulated probability exceeds u times the total."""
    cumulated = logits.softmax(-1).cumsum(-1)
    level = u.to(cumulated.dtype).clamp_max(1 - torch.finfo(cumulated.dtype).eps / 2)[:, None] * cumulated[:, -1:]
    return torch.searchsorted(cumulated, level, right=True)[:, 0].clamp_max(logits.shape[1] - 1)


def roll_in(model: Decoder, batch: dict[str, Tensor], ratio: float, step: int, seed: int) -> tuple[Tensor, Tensor]:
    """One loop over the positions: (outputs with gradient, the mixed history that was fed)."""
    gold, rows = batch["targets"], torch.arange(len(batch["targets"]))
    keep = gate(batch["mask"], ratio, fold(seed, "gate", step))
    entries, state = model.start(batch["source"])
    outputs, history = [], []
    for t in range(gold.shape[1]):
        logits, state = model.step(entries, state)
        # no gradient goes through a draw: the history is data, as gold is
        own = draw(logits.detach(), uniform(fold(seed, "draw", step), rows, torch.full_like(rows, t)))
        entries = torch.where(keep[:, t], gold[:, t], own)
        outputs.append(logits)
        history.append(entries)
    return torch.stack(outputs, 1), torch.stack(history, 1)


def loss_of(outputs: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Cross-entropy with the gold targets, whatever was fed: the mean over the positions that count."""
    mask = batch["mask"]
    return F.cross_entropy(outputs[mask], batch["targets"][mask])


def ratio_at(step: int, updates: int) -> float:
    """P(gold), from 1 down to 0.25 in a straight line (Bengio et al. 2015 let it fall)."""
    return 1.0 - 0.75 * min(step / updates, 1.0)


# ----------------------------------------------------------------------------------------------------------------------
# Free running: no gold at all, as in use.


@torch.no_grad()
def free_run(model: Decoder, source: Tensor, length: int) -> Tensor:
    """The most probable symbol becomes the next entry: (batch, length)."""
    entries, state = model.start(source)
    history = []
    for _ in range(length):
        logits, state = model.step(entries, state)
        entries = logits.argmax(-1)
        history.append(entries)
    return torch.stack(history, 1)


def errors(model: Decoder, batch: dict[str, Tensor]) -> float:
    """Share of wrong symbols in a free run, in percent."""
    wrong = free_run(model, batch["source"], batch["targets"].shape[1]) != batch["targets"]
    return 100 * float(wrong[batch["mask"]].double().mean())


def train(sampled: bool, seed: int, updates: int) -> float:
    """The free-running error of a model on test rows; both arms of a seed begin with the same weights and see the same
    batches."""
    torch.manual_seed(seed)
    model = Decoder()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(updates):
        batch = make_batch(64, seed=1000 * seed + step + 1)
        outputs, _ = roll_in(model, batch, ratio_at(step, updates) if sampled else 1.0, step, seed)
        optimizer.zero_grad()
        loss_of(outputs, batch).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return errors(model, make_batch(1000, seed=0))


# ----------------------------------------------------------------------------------------------------------------------
# Does it pay? The difference of the arms, seed by seed, and how sure so many seeds are of its mean.

STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""The 97.5 % point of Student's t by number of seeds."""


def paired_interval(differences: list[float]) -> tuple[float, float, float]:
    """Mean and 95 % interval over other seeds; items are taken as they are."""
    number = len(differences)
    mean = sum(differences) / number
    variance = sum((each - mean) ** 2 for each in differences) / (number - 1)
    half = STUDENT[min(number, 10)] * math.sqrt(variance / number)
    return mean, mean - half, mean + half


def main() -> None:
    """Both arms with every seed, and what may be concluded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=5, help="at least 2")
    arguments = parser.parse_args()
    if arguments.seeds < 2:
        parser.error("--seeds: an interval over other seeds needs at least 2")
    differences = []
    for seed in range(arguments.seeds):
        gold, own = (train(sampled, seed, arguments.updates) for sampled in (False, True))
        differences.append(own - gold)
        print(
            f"seed {seed}: free-running error {gold:.1f} % after teacher forcing, {own:.1f} % after sampling",
            flush=True,
        )
    mean, low, high = paired_interval(differences)
    print(f"difference {mean:+.1f} points, 95 % interval {low:+.1f} to {high:+.1f}; below zero sampling is better")
    verdict = "better" if high < 0 else "worse" if low > 0 else "not shown to differ"
    print(f"scheduled sampling: {verdict} (without a noise control this does not say why)")


if __name__ == "__main__":
    main()
