"""The article's Seq2SeqModel, as published and corrected: the effect of the missing shift.

Run: python examples/article.py --seed 0
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor, nn

import freerun as fr

TIME, BATCH, VALUE, HIDDEN = 5, 3, 10, 20
PUBLISHED, MEAN = 10, 50
Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


def literal(model: nn.Module, source: Tensor, target: Tensor) -> Tensor:
    """The published step on (time, batch, value) tensors: the decoder input is the target itself."""
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
    """Train from one seed with and without the shift, and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of the weights and of all data")
    parser.add_argument("--epochs", type=int, default=500, help="10 as published; the difference shows after some 200")
    arguments = parser.parse_args()
    seed, epochs = arguments.seed, arguments.epochs
    few = min(epochs, PUBLISHED)

    print("As published: the decoder input is the unshifted target.")
    published = train(fr.models.UnshiftedSeq2SeqModel, through_freerun, seed, epochs)
    for epoch, loss in enumerate(published[:few], 1):
        print(f"Epoch [{epoch}/{few}], Loss: {loss:.4f}")
    by_hand = train(fr.models.UnshiftedSeq2SeqModel, literal, seed, few)
    same = [f"{a:.4f}" for a in published[:few]] == [f"{b:.4f}" for b in by_hand]
    print(f"The literal loop prints {'the same digits' if same else 'OTHER digits'}.")

    print("\nShifted: position t reads the value at t-1, position 0 zeros.")
    shifted = train(fr.models.Seq2SeqModel, through_freerun, seed, epochs)
    for epoch, loss in enumerate(shifted[:few], 1):
        print(f"Epoch [{epoch}/{few}], shifted loss: {loss:.4f}")
    if epochs <= PUBLISHED:
        print(f"\nIn {few} epochs the two look similar; --epochs 500 shows the difference.")
        return

    print(f"\nContinuing; means over the last {MEAN} epochs:\nepochs  as published  shifted")
    for end in sorted({*range(epochs, 0, -max(epochs // 5, 1))}):
        means = (sum(losses[max(0, end - MEAN) : end]) / min(MEAN, end) for losses in (published, shifted))
        print(f"{end:6}  {next(means):12.3f}  {next(means):7.3f}")
    print(
        "\nThe published decoder reads the very value it must predict, so its loss falls towards 0 by copying and "
        "does not measure prediction.\nThe shifted decoder must predict what it has not seen: these targets are "
        "random, so its loss cannot fall below their variance, 1."
    )


if __name__ == "__main__":
    main()
