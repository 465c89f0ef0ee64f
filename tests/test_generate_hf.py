"""Greedy and beam search equal Hugging Face's ``generate`` on models with the same weights, step for step."""

import pytest
import torch
from torch import Tensor

import freerun as fr
from builders import refused
from converted import BOS, END, PAD, VOCAB, language_model, llama, pegasus, translator
from freerun.batch import Batch
from freerun.decoding import prompt_lengths, start_decoding
from freerun.generation import generate
from test_generate import same_as_one_call

LENGTH = 8
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
PROMPTS = torch.tensor([3, 0, 1, 5, 2, 4])


def prompts(padding: str) -> Batch:
    """Random prompts of differing lengths, beginning together or ending together; an end in them ends nothing."""
    time = int(PROMPTS.max())
    ids = torch.randint(3, VOCAB, (len(PROMPTS), time + 1), generator=torch.Generator().manual_seed(1))
    places = torch.arange(time + 1)
    if padding == "right":
        return Batch(ids, ids, places >= PROMPTS[:, None])
    index = places - (time - PROMPTS[:, None])
    ids = ids.gather(1, index.clamp_min(0))
    return Batch(ids, ids, (places == time).expand_as(ids), context={"present": (index >= 0)[:, :time]})


def their_prompts() -> dict[str, Tensor]:
    """The same for theirs: the begin symbol, then the prompt, padded on the left."""
    batch, time = prompts("left"), int(PROMPTS.max())
    present = batch.context["present"]
    ids = torch.nn.functional.pad(batch.history[:, :time].masked_fill(~present, PAD), (1, 0), value=PAD)
    ids[torch.arange(len(ids)), time - PROMPTS] = BOS
    return {"input_ids": ids, "attention_mask": (ids != PAD).long()}


def sources() -> tuple[Batch, dict[str, Tensor]]:
    """Random sources of differing lengths, for ours and for theirs."""
    g = torch.Generator().manual_seed(2)
    lengths = torch.randint(1, 7, (8, 1), generator=g)
    mask = torch.arange(6) < lengths
    source = torch.randint(3, VOCAB, (8, 6), generator=g).masked_fill(~mask, PAD)
    blank = torch.zeros(8, 1, dtype=torch.int64)
    batch = Batch(blank, blank, blank == 0, context={"source": source, "source_mask": mask})
    return batch, {"input_ids": source, "attention_mask": mask.long()}


def theirs(
    hf, inputs: dict[str, Tensor], beams: int, length: int = LENGTH
) -> tuple[Tensor, Tensor | None, list[Tensor]]:
    """Entries (batch, beams, length), filled with the end; scores; and the logits of every step, in full precision."""
    logits: list[Tensor] = []
    hook = hf.register_forward_hook(lambda module, inputs, output: logits.append(output.logits[:, -1]))
    found = hf.generate(
        **inputs, max_new_tokens=length, do_sample=False, num_beams=beams, num_return_sequences=beams,
        return_dict_in_generate=True, output_scores=True,
        **({"length_penalty": 0.0, "early_stopping": "never"} if beams > 1 else {}),
    )  # fmt: skip
    hook.remove()
    read = 1 if hf.config.is_encoder_decoder else inputs["input_ids"].shape[1]
    output = torch.nn.functional.pad(found.sequences[:, read:], (0, length), value=END)[:, :length]
    ended = (output == END).cumsum(1) > 0
    scores = found.sequences_scores.view(-1, beams) if beams > 1 else None
    return output.masked_fill(ended, END).view(-1, beams, length), scores, logits


def assert_same_steps(ours, batch: Batch, output: Tensor, logits: list[Tensor], tolerance: float) -> None:
    """Ours, fed the output of theirs, predicts the same at every step until a row ends."""
    with torch.no_grad():
        walk = start_decoding(ours, batch, prompt_lengths(batch), LENGTH)
        for t, expected in enumerate(logits):
            going = (output[:, :t] != END).all(1)
            torch.testing.assert_close(walk.predict()[going], expected[going], rtol=0, atol=tolerance)
            walk.advance(output[:, t], None)
    assert 0 < int((output == END).any(1).sum()) < len(output)  # both are put to the test


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_greedy_is_that_of_a_llama(dtype, tied, padding):
    hf = llama(tied, dtype)
    ours, batch = language_model(hf).eval(), prompts(padding)
    output, _, logits = theirs(hf, their_prompts(), 1)
    assert torch.equal(generate(ours, batch, length=LENGTH, end=END).entries, output[:, 0])
    assert_same_steps(ours, batch, output[:, 0], logits, TOLERANCE[dtype])


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_greedy_is_that_of_a_pegasus(dtype, activation):
    hf = pegasus(activation, dtype)
    ours, (batch, inputs) = translator(hf).eval(), sources()
    output, _, logits = theirs(hf, inputs, 1)
    assert torch.equal(generate(ours, batch, length=LENGTH, end=END).entries, output[:, 0])
    assert_same_steps(ours, batch, output[:, 0], logits, TOLERANCE[dtype])


def assert_same_beams(hf, ours, inputs: dict[str, Tensor], batches: list[Batch], beams: int) -> None:
    # all hypotheses at every length: what is finished and what is alive after each step
    for length in range(1, LENGTH + 1):
        output, scores, _ = theirs(hf, inputs, beams, length)
        for batch in batches:
            found = generate(ours, batch, length=length, end=END, beams=beams, n_best=beams)
            assert torch.equal(found.entries, output)
            assert scores is not None  # theirs are sums in float32
            torch.testing.assert_close(found.scores.float(), scores, rtol=0, atol=1e-5)
            best = generate(ours, batch, length=length, end=END, beams=beams)
            assert torch.equal(best.entries, output[:, 0])
    assert 0.1 < float((output == END).any(-1).float().mean()) < 0.9  # both are put to the test
    assert len(output.flatten(0, 1).unique(dim=0)) > 0.6 * len(output) * beams


@pytest.mark.parametrize("beams", [2, 3, 4, 5])
def test_beam_search_is_that_of_a_llama(beams):
    hf, batches = llama(False, torch.float64), [prompts("left"), prompts("right")]
    assert_same_beams(hf, language_model(hf), their_prompts(), batches, beams)


@pytest.mark.parametrize("beams", [2, 3, 4, 5])
def test_beam_search_is_that_of_a_pegasus(beams):
    hf, (batch, inputs) = pegasus("gelu", torch.float64), sources()
    assert_same_beams(hf, translator(hf), inputs, [batch], beams)


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_the_head_of_an_adapted_model_computes_what_is_used_and_nothing_twice(family):
    import transformers

    from freerun import hf, scheduled_sampling

    torch.manual_seed(0)
    if family == "gpt2":
        config = transformers.GPT2Config(vocab_size=11, n_positions=32, n_embd=16, n_layer=2, n_head=2,
                                         bos_token_id=1, eos_token_id=None)  # fmt: skip
        model = transformers.GPT2LMHeadModel(config).eval()
    else:
        config = transformers.T5Config(vocab_size=11, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2,
                                       decoder_start_token_id=0, eos_token_id=None)  # fmt: skip
        model = transformers.T5ForConditionalGeneration(config).eval()
    m = hf.adapt(model)
    computed = []
    model.lm_head.register_forward_hook(lambda _, __, logits: computed.append(logits[..., 0].numel()))
    ids = torch.randint(1, 11, (4, 6))

    made = generate(m, m.batch(input_ids=ids), length=7).entries
    assert sum(computed) == 4 * 7
    their = model.generate(ids, do_sample=False, max_new_tokens=7, attention_mask=torch.ones_like(ids), pad_token_id=0)
    assert torch.equal(made, their[:, -7:])

    batch = m.batch(input_ids=ids, labels=ids)
    for ratio, engine in ((0.0, "window"), (0.0, "step"), (0.5, "window"), (0.5, "step")):
        method = scheduled_sampling(ratio, engine=engine)
        replaced = method.run(m, batch, 0, 1).report["replaced"]
        computed.clear()
        method.transform(m, batch, 0, 1)
        assert replaced <= sum(computed) <= replaced + 1  # or one more, for the width of the outputs


@pytest.mark.parametrize("draw", ["greedy", "sample"])
def test_a_stream_of_an_adapted_model_is_one_run(draw):
    hf = llama(False, torch.float64)
    model = fr.hf.adapt(hf)
    inputs = their_prompts()
    batch = model.batch(**inputs)
    same_as_one_call(model, batch, (3, 1, 4), draw=draw, end=END, key=2)
    hf.generation_config.repetition_penalty = 1.3
    refused("follows rules of its own generation_config", generate, model, batch, length=2, end=END, state=True)
