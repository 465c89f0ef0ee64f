"""The article's Seq2SeqModel, as published and as it should be: what the missing shift hides.

Run: python examples/article.py --seed 0
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor, nn

import freerun as fr

TIME, BATCH, VALUE, HIDDEN = 5, 3, 10, 20
Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


def literal(model: nn.Module, source: Tensor, target: Tensor) -> Tensor:
    """The published step on (time, batch, value) tensors: the decoder is given the target itself."""
    _, hidden = model.encoder(source)
    output, _ = model.decoder(target, hidden)
    return nn.MSELoss()(model.fc(output), target)


def through_freerun(model: nn.Module, source: Tensor, target: Tensor) -> Tensor:
    """The same step as a Batch under teacher forcing; the model decides whether it shifts."""
    target = target.transpose(0, 1)
    mask = torch.ones(target.shape[:2], dtype=torch.bool)
    batch = fr.Batch(targets=target, history=target, mask=mask, context=source.transpose(0, 1))
    return fr.teacher_forcing()(model, batch, step=0)


def train(make: Callable[..., nn.Module], loss_of: Loss, seed: int, epochs: int) -> list[float]:
    """The published loop: random input and target drawn in each epoch, Adam at 0.001."""
    torch.manual_seed(seed)
    model = make(VALUE, HIDDEN, VALUE)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    losses: list[float] = []
    for _ in range(epochs):
        source, target = torch.randn(TIME, BATCH, VALUE), torch.randn(TIME, BATCH, VALUE)
        optimizer.zero_grad()
        loss = loss_of(model, source, target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def main() -> None:
    """Train three times from one seed and say what the difference means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of the weights and of all data")
    parser.add_argument("--epochs", type=int, default=10, help="10 as published; 2000 show where each loss goes")
    arguments = parser.parse_args()
    seed, epochs = arguments.seed, arguments.epochs

    print("As published: the decoder is given the unshifted target.")
    published = train(fr.models.UnshiftedSeq2SeqModel, through_freerun, seed, epochs)
    for epoch, loss in enumerate(published, 1):
        print(f"Epoch [{epoch}/{epochs}], Loss: {loss:.4f}")
    by_hand = train(fr.models.UnshiftedSeq2SeqModel, literal, seed, epochs)
    same = [f"{a:.4f}" for a in published] == [f"{b:.4f}" for b in by_hand]
    print(f"The literal loop prints {'the same digits' if same else 'OTHER digits'}.")

    print("\nShifted: position t is told the value at t-1, position 0 zeros.")
    shifted = train(fr.models.Seq2SeqModel, through_freerun, seed, epochs)
    for epoch, loss in enumerate(shifted, 1):
        print(f"Epoch [{epoch}/{epochs}], shifted loss: {loss:.4f}")

    print(
        "\nThe published decoder is told the very value it must predict, so its loss can fall towards 0 by copying and "
        "says nothing about prediction.\nThe shifted decoder must predict what it has not seen: these targets are "
        "random, so its loss cannot fall below their variance, 1."
    )


if __name__ == "__main__":
    main()
