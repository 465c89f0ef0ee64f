"""The article's program: its loop digit for digit."""

import runpy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn, optim

import freerun as fr
from builders import refused

SCRIPT = Path(__file__).parent.parent / "examples" / "article.py"


class Seq2SeqModel(nn.Module):
    """A transcription of the published model: nothing of freerun in it."""

    def __init__(self, input_size, hidden_size, output_size):
        super().__init__()
        self.encoder = nn.RNN(input_size, hidden_size)
        self.decoder = nn.RNN(output_size, hidden_size)
        self.fc = nn.Linear(hidden_size, output_size)

    def forward(self, input_seq, target_seq):
        _, hidden = self.encoder(input_seq)
        output, _ = self.decoder(target_seq, hidden)
        return self.fc(output)


def published_lines(seed: int, num_epochs: int = 10) -> list[str]:
    torch.manual_seed(seed)
    model = Seq2SeqModel(10, 20, 10)
    criterion, optimizer = nn.MSELoss(), optim.Adam(model.parameters(), lr=0.001)
    lines = []
    for epoch in range(num_epochs):
        input_seq, target_seq = torch.randn(5, 3, 10), torch.randn(5, 3, 10)
        optimizer.zero_grad()
        loss = criterion(model(input_seq, target_seq), target_seq)
        loss.backward()
        optimizer.step()
        lines.append(f"Epoch [{epoch + 1}/{num_epochs}], Loss: {loss.item():.4f}")
    return lines


def ran(monkeypatch, capsys, *arguments: str) -> list[str]:
    """What the script prints."""
    monkeypatch.setattr(sys, "argv", ["article.py", *arguments])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("seed", [0, 3])
def test_the_script_prints_the_published_loop_digit_for_digit(seed, monkeypatch, capsys):
    printed = ran(monkeypatch, capsys, "--seed", str(seed), "--epochs", "10")
    assert [line for line in printed if ", Loss: " in line] == published_lines(seed)
    assert "The literal loop prints the same digits." in printed
    assert sum("shifted loss" in line for line in printed) == 10


def test_by_default_the_script_shows_the_difference(monkeypatch, capsys):
    printed = ran(monkeypatch, capsys)
    assert [line for line in printed if ", Loss: " in line] == published_lines(0)
    last = next(line.split() for line in printed[::-1] if line.startswith("   500"))
    assert float(last[1]) < 0.1  # copied
    assert 0.9 < float(last[2]) < 1.1  # the variance of the targets


def test_a_context_that_does_not_fit_is_refused():
    values, plain, series = torch.randn(3, 5, 10), fr.models.Seq2SeqModel(4, 20, 10), fr.models.ArticleForecaster(10)
    for model, context, message in (
        (plain, None, r"Seq2SeqModel needs Batch.context = \(batch, source_time, 4\); got NoneType"),
        (plain, torch.randn(3, 5, 3), r"\(batch, source_time, 4\); got \(3, 5, 3\)"),
        (series, None, r"ArticleForecaster needs Batch.context = \{'past': \(batch, past_time, 10\)"),
        (series, {"past": torch.randn(3, 5, 9)}, r"got \(3, 5, 9\)"),
        (series, {"past": values, "future": torch.randn(3, 5, 1)}, "made without covariates"),
    ):
        for call in (model, model.start):
            refused(message, call, fr.Batch(values, context=context))
    assert len(refused("", fr.models.ArticleForecaster, 0, 1, size=0)) == 3
    ids = torch.zeros(3, 5, dtype=torch.int64)
    refused("this batch holds ids", plain, fr.Batch(ids, context=torch.randn(3, 5, 4)))
