"""Small real models and batches that many tests use, and ways to assert a refusal."""

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from freerun.batch import Batch
from freerun.errors import UserError
from freerun.models import RecurrentSeq2Seq, TransformerLM, TransformerSeq2Seq

SOURCE_VOCAB, TARGET_VOCAB = 6, 5


def seq2seq(cell: str = "lstm", attention: str | None = "luong", **changes) -> RecurrentSeq2Seq:
    """A tiny recurrent encoder-decoder in float64, with weights large enough to depend on its history."""
    torch.manual_seed(7)
    settings = {"size": 8, "layers": 1} | changes
    model = RecurrentSeq2Seq(SOURCE_VOCAB, TARGET_VOCAB, cell=cell, attention=attention, **settings).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
    return model


def lively(model: nn.Module) -> nn.Module:
    """Weights large enough for the outputs to hang on every entry of the history."""
    g = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=g))
    return model


def transformer(positions: str = "rope", **changes) -> TransformerSeq2Seq:
    """A tiny Transformer encoder-decoder in float64."""
    settings = {"size": 8, "layers": 2, "heads": 2, "max_positions": 64} | changes
    model = TransformerSeq2Seq(SOURCE_VOCAB, TARGET_VOCAB, positions=positions, **settings)
    return lively(model.double())  # pyright: ignore[reportReturnType]


def language_model(positions: str = "rope", **changes) -> TransformerLM:
    """A tiny decoder-only Transformer in float64."""
    settings = {"size": 8, "layers": 2, "heads": 2, "max_positions": 64} | changes
    return lively(TransformerLM(TARGET_VOCAB, positions=positions, **settings).double())  # pyright: ignore


def tiny_llama(vocab: int = 9, **changes: Any) -> Any:
    """A tiny Llama of Hugging Face's in float64."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(2)
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2} | changes
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocab, pad_token_id=0, max_position_embeddings=32, **sizes)).double()


def prompted(padding: str, size: int = 4, time: int = 9, seed: int = 4) -> Batch:
    """Prompts of 1 to 3 entries in the history, then targets of differing lengths; padding on one side or both."""
    g = torch.Generator().manual_seed(seed)
    places = torch.arange(time)
    targets = torch.randint(1, TARGET_VOCAB, (size, time), generator=g)
    prompts = torch.randint(1, 4, (size,), generator=g)
    spoken = torch.randint(2, time - 5, (size,), generator=g)
    begin = 3 - prompts if padding == "left" else torch.zeros_like(prompts)
    known = begin + prompts
    mask = (places >= known[:, None]) & (places < (known + spoken)[:, None])
    there = places >= begin[:, None]
    ids = targets.masked_fill(~there | (places >= (known + spoken)[:, None]), 0)
    context = {"present": there[:, :3]} if padding == "left" else None
    return Batch(ids, ids, mask, context, rows=torch.arange(size) + 10)


def ragged(size: int = 4, time: int = 7, source_time: int = 5, seed: int = 3) -> Batch:
    """Targets of differing lengths, the first row the longest; padding 0, masked."""
    g = torch.Generator().manual_seed(seed)
    targets = torch.randint(1, TARGET_VOCAB, (size, time), generator=g)
    lengths = torch.randint(2, time + 1, (size,), generator=g)
    lengths[0] = time
    mask = torch.arange(time) < lengths[:, None]
    targets = targets.masked_fill(~mask, 0)
    targets[torch.arange(size), lengths - 1] = 0  # the end symbol
    source = torch.randint(1, SOURCE_VOCAB, (size, source_time), generator=g)
    source_lengths = torch.randint(2, source_time + 1, (size,), generator=g)
    source_mask = torch.arange(source_time) < source_lengths[:, None]
    context = {"source": source.masked_fill(~source_mask, 0), "source_mask": source_mask}
    return Batch(targets, targets, mask, context, rows=torch.arange(size) + 10)


class ForwardOnly(nn.Module):
    """A model stripped to its forward: no encode, no step."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Tensor:
        return self.model(batch)


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """Gradient of every parameter by name (zeros where there is none)."""
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}


def assert_same_gradients(a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float = 1e-10) -> None:
    """Largest difference relative to the largest gradient, over all parameters."""
    largest = max(float(g.abs().max()) for g in b.values())
    for name, gradient in a.items():
        difference = float((gradient - b[name]).abs().max())
        assert difference <= tolerance * largest, f"{name}: {difference:.3e} of {largest:.3e}"


class Casts(TorchDispatchMode):
    """Counts the casts of each weight."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.names = {id(weight): name for name, weight in model.named_parameters()}
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._to_copy.default and id(args[0]) in self.names:
            self.counts[self.names[id(args[0])]] += 1
        return func(*args, **(kwargs or {}))

    @property
    def most(self) -> int:
        """Of one weight."""
        return max(self.counts.values(), default=0)


def raises(
    error: type[Exception], message: str | Iterable[str], call: Callable[..., Any], /, *args: Any, **named: Any
) -> list[str]:
    """Assert that a call raises an error whose message matches a pattern, or holds each part; return its problems."""
    with pytest.raises(error, match=(message or None) if isinstance(message, str) else None) as caught:
        call(*args, **named)
    missing = [] if isinstance(message, str) else [part for part in message if part not in str(caught.value)]
    assert not missing, f"{missing} not in {caught.value}"
    return list(getattr(caught.value, "problems", []))


def refused(message: str | Iterable[str], call: Callable[..., Any], /, *args: Any, **named: Any) -> list[str]:
    """``raises`` of a UserError."""
    return raises(UserError, message, call, *args, **named)


def problems_of(call: Callable[..., Any], /, *args: Any, **named: Any) -> list[str]:
    """Every problem, one line and perhaps one of help, of a call that a UserError refuses with exit code 2."""
    with pytest.raises(UserError) as caught:
        call(*args, **named)
    assert caught.value.exit_code == 2
    assert not any("\n" in problem.replace("\n  help: ", "", 1) for problem in caught.value.problems)
    return list(caught.value.problems)


def write_csv(path: Path, lines: Iterable[str], header: str = "", encoding: str = "utf-8") -> Path:
    path.write_bytes("".join(f"{line}\n" for line in ([header, *lines] if header else lines)).encode(encoding))
    return path
