"""Count the calls of freerun's functions in one training step.

Functions of ``freerun.models`` belong to the model and are counted separately; comprehensions are not counted.

Run: python benchmarks/calls.py [--where]     --where also lists the functions, most called first
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import freerun as fr

SOURCE = str(Path(fr.__file__).parent)


def counted(call: Any) -> Counter[str]:
    """Count the calls of each function of freerun during a call."""
    found: Counter[str] = Counter()

    def note(frame: FrameType, event: str, _: Any) -> None:
        inner = frame.f_code.co_name in ("<genexpr>", "<listcomp>", "<dictcomp>", "<setcomp>")
        if event == "call" and frame.f_code.co_filename.startswith(SOURCE) and not inner:
            found[f"{frame.f_code.co_filename.removeprefix(SOURCE)}:{frame.f_code.co_qualname}"] += 1

    call()  # the first step also resolves and caches
    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return found


def pairs() -> fr.Batch:
    """A 4 x 6 batch."""
    ids = torch.randint(1, 5, (4, 6))
    source = torch.randint(1, 5, (4, 5))
    return fr.Batch(ids, ids, ids >= 0, {"source": source, "source_mask": source >= 0})


def lstm() -> tuple[Any, fr.Batch]:
    """A recurrent encoder-decoder."""
    return fr.models.RecurrentSeq2Seq(5, 5, size=8, cell="lstm"), pairs()


def transformer() -> tuple[Any, fr.Batch]:
    """A Transformer with a cache."""
    return fr.models.TransformerSeq2Seq(5, 5, size=16, heads=2, layers=2, dropout=0.0), pairs()


def gpt2() -> tuple[Any, fr.Batch]:
    """An adapted GPT-2."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=11, n_positions=32, n_embd=16, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    model = fr.hf.adapt(GPT2LMHeadModel(config))
    ids = torch.randint(0, 9, (4, 6))
    return model, model.batch(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids)


def main(arguments: list[str]) -> int:
    command = argparse.ArgumentParser(description=__doc__)
    command.add_argument("--where", action="store_true", help="list the functions")
    options = command.parse_args(arguments)
    for name, make in (("LSTM", lstm), ("Transformer, cached", transformer), ("GPT-2, adapted", gpt2)):
        torch.manual_seed(0)
        model, batch = make()
        method = fr.scheduled_sampling(0.5)
        found = counted(lambda: method(model, batch, step=3, key=1))  # noqa: B023
        ours = Counter({each: number for each, number in found.items() if not each.startswith("/models/")})
        files = len({each.split(":")[0] for each in ours})
        print(f"{name}: {ours.total()} calls in {files} files, and {found.total() - ours.total()} of the model's own")
        if options.where:
            print(*(f"  {number:4} {each}" for each, number in ours.most_common()), sep="\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
