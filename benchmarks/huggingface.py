"""The price of exact scheduled sampling on a Hugging Face model, through the adapter.

A price is the median over repetitions of (forward, loss and backward with scheduled sampling) / (the same with teacher
forcing) on one model and batch, all variants interleaved, one thread, CPU time; on a GPU wall time, with peak memory.
The engines are compared with the model's own loss and with two loops written by hand: over a DynamicCache, and with the
full prefix. The model is a GPT-2 with weights of twice the usual size, or one trained for --updates updates on the
source code of Python's standard library.

With --generate the price is that of `freerun.generate`, greedy or by --beams, in multiples of the model's own; prompts
of --prompt ids (T5: a source of --time), to --time ids in all, the same ids from both, or it stops.

Run: python benchmarks/huggingface.py [--updates 300] [--ratios 0.9,0.75,0.5] [--json]
     python benchmarks/huggingface.py --generate [--model t5] [--prompt 8]
On a GPU: python benchmarks/huggingface.py --device cuda --size 768 --layers 12 --heads 12 --batch 16 --time 512 \\
    --vocab 50257 --bf16 [--compile]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

import freerun as fr
from cases import library_text
from freerun import hf
from timing import clock_of, prices, take


def arguments_of(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("size", 256), ("layers", 4), ("heads", 4), ("batch", 16), ("time", 64), ("vocab", 1000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--updates", type=int, default=0, help="of teacher forcing on text before measuring")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--ratios", default="0.9,0.75,0.5,0")
    parser.add_argument("--prompt", type=int, default=0, help="this many of --time are a prompt")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument(
        "--model", default="gpt2", choices=("gpt2", "t5"), help="t5: --layers on both sides, no training"
    )
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast")
    parser.add_argument("--compile", action="store_true", help="torch.compile of what is differentiated")
    parser.add_argument("--by-hand", action="store_true", help="also the loops people write")
    parser.add_argument("--generate", action="store_true", help="the price of free running, nothing else")
    parser.add_argument("--beams", type=int, default=1, help="of --generate")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args(argv)


def model_of(options: argparse.Namespace) -> Any:
    """A GPT-2 or a T5."""
    from transformers import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration
    from transformers.utils import logging

    logging.set_verbosity_error()
    torch.manual_seed(0)
    if options.model == "t5":
        shape = {"d_model": options.size, "d_kv": options.size // options.heads, "d_ff": 4 * options.size}
        return T5ForConditionalGeneration(T5Config(
            **shape, vocab_size=options.vocab, num_layers=options.layers, num_heads=options.heads, dropout_rate=0.0,
            decoder_start_token_id=0, pad_token_id=0, eos_token_id=None,
        )).to(options.device)  # fmt: skip
    config = GPT2Config(
        vocab_size=options.vocab, n_positions=options.time + 1, n_embd=options.size, n_layer=options.layers,
        n_head=options.heads, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    if not options.updates:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(2 if parameter.dim() > 1 else 1)
    return model.to(options.device)


def text(options: argparse.Namespace, rows: int, key: int) -> Tensor:
    """(rows, time + 1) bytes of the standard library's source, or random ids without training."""
    generator = torch.Generator().manual_seed(key)
    if not options.updates:
        return torch.randint(options.vocab, (rows, options.time + 1), generator=generator)
    source = library_text()
    starts = torch.randint(len(source) - options.time - 1, (rows,), generator=generator)
    return torch.stack([source[start : start + options.time + 1] for start in starts.tolist()])


def batch_of(m: Any, options: argparse.Namespace, key: int) -> fr.Batch:
    """A batch as from a collator."""
    ids = text(options, options.batch, key).to(options.device)
    if options.model == "t5":
        ids = ids[:, 1:].clamp_min(1)
        return m.batch(input_ids=ids.flip(1), attention_mask=torch.ones_like(ids), labels=ids)
    labels = ids.clone()
    labels[:, : options.prompt + 1] = -100
    return m.batch(input_ids=ids, labels=labels)


def train(m: Any, options: argparse.Namespace) -> None:
    """Train for some updates, for the outputs of a trained model."""
    optimizer = torch.optim.AdamW(m.parameters(), 1e-3)
    for n in range(options.updates):
        loss = fr.teacher_forcing()(m, batch_of(m, options, n), step=0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if n % 50 == 0:
            print(f"update {n}: {float(loss.detach()):.3f} nats", file=sys.stderr)


def cached_loop(inner: Any, batch: fr.Batch, ratio: float, key: int) -> Tensor:
    """The mixed ids by the usual loop: one token at a time over a DynamicCache, with public calls only."""
    ids = torch.cat([batch.context.first, batch.history], 1)
    generator = torch.Generator(ids.device).manual_seed(key)
    past = None
    with torch.no_grad():
        for t in range(ids.shape[1] - 2):
            out = inner(input_ids=ids[:, t : t + 1], past_key_values=past, use_cache=True)
            past = out.past_key_values
            own = torch.multinomial(out.logits[:, -1].float().softmax(-1), 1, generator=generator).squeeze(1)
            coins = torch.rand(len(ids), generator=generator, device=ids.device) < ratio
            ids[:, t + 1] = torch.where(coins, ids[:, t + 1], own)
    return ids


def full_prefix_loop(inner: Any, batch: fr.Batch, ratio: float, key: int) -> Tensor:
    """The mixed ids by a loop with a forward over the full prefix for every token."""
    ids = torch.cat([batch.context.first, batch.history], 1)
    generator = torch.Generator(ids.device).manual_seed(key)
    with torch.no_grad():
        for t in range(ids.shape[1] - 2):
            logits = inner(input_ids=ids[:, : t + 1], use_cache=False).logits[:, -1]
            own = torch.multinomial(logits.float().softmax(-1), 1, generator=generator).squeeze(1)
            coins = torch.rand(len(ids), generator=generator, device=ids.device) < ratio
            ids[:, t + 1] = torch.where(coins, ids[:, t + 1], own)
    return ids


def steps_of(m: Any, batch: fr.Batch, ratio: float, options: argparse.Namespace) -> dict[str, Callable[[int], Any]]:
    """The variants by name."""
    gumbel = fr.draws.sample(coupling="gumbel")
    methods = {
        "teacher forcing": fr.teacher_forcing(),
        "auto": fr.scheduled_sampling(ratio),
        **{name: fr.scheduled_sampling(ratio, engine=name) for name in ("window", "step")},
        "jacobi, gumbel": fr.scheduled_sampling(ratio, engine="jacobi", draw=gumbel),
        "two passes (approximate)": fr.scheduled_sampling(ratio, engine=1),
    }

    def backward(loss: Tensor) -> None:
        m.zero_grad(set_to_none=True)
        loss.backward()

    def freerun_step(method: Any) -> Callable[[int], fr.Outcome]:
        def step(n: int) -> fr.Outcome:
            with torch.autocast(options.device, dtype=torch.bfloat16, enabled=options.bf16):
                outcome = method.run(m, batch, n, 1)
            backward(outcome.loss)
            return outcome

        return step

    def stock(make: Callable[[Any, fr.Batch, float, int], Tensor] | None) -> Callable[[int], None]:
        def step(n: int) -> None:
            with torch.autocast(options.device, dtype=torch.bfloat16, enabled=options.bf16):
                gold = m.inputs(batch)
                if make is not None:
                    gold["input_ids"] = make(m.inner, batch, ratio, n)
                loss = m.model(**gold, use_cache=False).loss
            backward(loss)

        return step

    steps: dict[str, Callable[[int], Any]] = {name: freerun_step(method) for name, method in methods.items()}
    steps["model's own loss"] = stock(None)
    if options.by_hand:
        steps["by hand: DynamicCache"] = stock(cached_loop)
        steps["by hand: full prefix"] = stock(full_prefix_loop)
    return steps


def lines(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A line for each ratio."""
    inner = model_of(options)
    m = hf.adapt(inner)
    train(m, options)
    m = hf.adapt(torch.compile(inner)) if options.compile else m
    batch = batch_of(m, options, -1)
    found: list[dict[str, Any]] = []
    for ratio in map(float, options.ratios.split(",")):
        print(f"ratio {ratio:g}", file=sys.stderr, flush=True)
        steps = steps_of(m, batch, ratio, options)
        peaks = {name: _peak(step) for name, step in steps.items()} if options.device == "cuda" else {}
        taken = take(steps, options.repetitions, clock_of(options.device))
        base = sorted(taken["teacher forcing"].seconds)[len(taken["teacher forcing"].seconds) // 2]
        counts = {name: (mine.mean("passes"), mine.mean("work")) for name, mine in taken.items() if mine.outcomes}
        found.append({
            "teacher_forcing_ratio": ratio, "teacher_forcing_seconds": base,
            "took": taken["auto"].outcomes[-1][0]["engine"], "prices": prices(taken, "teacher forcing"),
            "passes_and_work": counts, "peak_gib": peaks,
        })  # fmt: skip
    return found


def generation(m: Any, options: argparse.Namespace) -> dict[str, float]:
    """The price of a free run, greedy or by beams, with the same ids from both."""
    ids = text(options, options.batch, -1).to(options.device)[:, 1:].clamp_min(1)
    known = ids if options.model == "t5" else ids[:, : max(1, options.prompt)]
    length = options.time - (0 if options.model == "t5" else known.shape[1])
    inputs = {"input_ids": known, "attention_mask": torch.ones_like(known)}
    found: dict[str, Tensor] = {}

    def theirs(n: int) -> None:
        made = m.inner.generate(
            **inputs, do_sample=False, num_beams=options.beams, max_new_tokens=length, pad_token_id=0
        )
        found["theirs"] = made[:, 1 if options.model == "t5" else known.shape[1] :]

    def ours(n: int) -> None:
        found["ours"] = fr.generate(m, m.batch(**inputs), length=length, beams=options.beams).entries

    taken = take({"model.generate": theirs, "freerun.generate": ours}, options.repetitions, clock_of(options.device))
    if not torch.equal(found["ours"], found["theirs"]):
        raise SystemExit("the two free runs have different ids")
    return prices(taken, "model.generate")


def _peak(step: Callable[[int], Any]) -> float:
    torch.cuda.reset_peak_memory_stats()
    step(0)
    return torch.cuda.max_memory_allocated() / 2**30


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table, or the JSON list."""
    options = arguments_of(argv)
    torch.set_num_threads(1)
    if options.generate:
        for name, price in generation(hf.adapt(model_of(options)), options).items():
            print(f"{name}: {price:.2f}")
        return
    found = lines(options)
    if options.json:
        print(json.dumps(found, indent=1))
        return
    names = list(found[0]["prices"])
    print("| | " + " | ".join(f"{line['teacher_forcing_ratio']:g}" for line in found) + " |")
    print("| --- |" + " ---: |" * len(found))
    for name in names:
        print(f"| {name} | " + " | ".join(f"{line['prices'][name]:.2f}" for line in found) + " |")
    print("| auto took | " + " | ".join(line["took"] for line in found) + " |")


if __name__ == "__main__":
    main()
