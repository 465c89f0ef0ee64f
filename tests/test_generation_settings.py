"""Free runs and roll-ins follow a model's ``generation_config`` as its own ``generate`` does."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    EncoderRepetitionPenaltyLogitsProcessor,
    ExponentialDecayLengthPenalty,
    GenerationConfig,
    GenerationMixin,
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
    WatermarkingConfig,
)

import freerun as fr
import oracles_hf as oracle
from families import PAD, VOCAB
from freerun import hf
from freerun.keys import fold, uniform
from oracles import choose
from oracles_hf import KEY, STEP, Prepared, Row, engines, prepared

FAMILIES = ["gpt2", "llama", "qwen3", "t5", "bart", "mbart", "m2m_100", "marian", "whisper"]
END, LENGTH = 8, 6
BEGIN = list(range(4, 14))

SETTINGS: dict[str, dict[str, Any]] = {
    "suppress_tokens": {"suppress_tokens": [5, 7, 14, 15, 19]},
    "begin_suppress_tokens": {"begin_suppress_tokens": [*BEGIN, 14, 15, 19]},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 2},
    "repetition_penalty": {"repetition_penalty": 1.7},
    "bad_words_ids": {"bad_words_ids": [[14], [15, 15], [19, 22, 19]]},
    "min_new_tokens": {"min_new_tokens": 4},
    "sequence_bias": {"sequence_bias": [[[5], 3.0], [[6, 7], -4.0]]},
    "exponential_decay_length_penalty": {"exponential_decay_length_penalty": (1, 1.5)},
    "forced_eos_token_id": {"forced_eos_token_id": END},
    "eos_token_id": {"eos_token_id": [END, 14, 15]},
    "all": {"no_repeat_ngram_size": 2, "repetition_penalty": 1.3, "suppress_tokens": [5], "min_new_tokens": 3,
            "bad_words_ids": [[4], [6, 8]]},
}  # fmt: skip
OF_SOURCES = {
    "encoder_repetition_penalty": {"encoder_repetition_penalty": 1.8},
    "encoder_no_repeat_ngram_size": {"encoder_no_repeat_ngram_size": 1},
    "min_length": {"min_length": 5},
    "forced_bos_token_id": {"forced_bos_token_id": 6, "begin_suppress_tokens": BEGIN},
}


def prompts(p: Prepared, padding: str) -> fr.Batch:
    if p.model.config.is_encoder_decoder:
        return p.m.batch(**{name: value for name, value in p.inputs.items() if name != "labels"})
    read = 1 + max(row.prompt for row in p.rows)
    ids = torch.zeros(len(p.rows), read, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for r, row in enumerate(p.rows):
        begin = 0 if padding == "right" else read - 1 - row.prompt
        ids[r, begin : begin + 1 + row.prompt] = torch.tensor([row.first, *row.gold[: row.prompt]])
        mask[r, begin : begin + 1 + row.prompt] = 1
    return p.m.batch(input_ids=ids, attention_mask=mask)


def filled(entries: Tensor, ends: list[int]) -> Tensor:
    """The entries, with one and the same id after each row's end."""
    ended = torch.isin(entries, torch.tensor(ends)).long().cumsum(1)
    padded = torch.nn.functional.pad(entries, (0, LENGTH - entries.shape[1]))
    past = torch.nn.functional.pad(
        ended - torch.isin(entries, torch.tensor(ends)).long(), (0, LENGTH - ended.shape[1]), value=1
    )
    return padded.masked_fill(past > 0, END)


@pytest.fixture(scope="module")
def of_family() -> Any:
    """Prepared families, each adapted once: an adapter reads the settings at every call."""
    made: dict[str, Prepared] = {}

    def get(name: str) -> Prepared:
        if name not in made:
            made[name] = prepared(name)
        config = GenerationConfig(eos_token_id=END, pad_token_id=PAD, max_new_tokens=LENGTH)
        for symbol in ("decoder_start_token_id", "bos_token_id"):
            setattr(config, symbol, getattr(made[name].model.config, symbol, None))
        made[name].model.generation_config = config
        return made[name]

    return get


@pytest.mark.parametrize("name", FAMILIES)
def test_generate_is_theirs_under_every_setting(name, of_family):
    p = of_family(name)
    plain = fr.generate(p.m, prompts(p, "right")).entries
    moved: set[str] = set()
    settings = SETTINGS | (OF_SOURCES if name in ("t5", "bart", "mbart", "m2m_100", "marian") else {})
    for which, changes in settings.items():
        p = of_family(name)
        ends = changes.get("eos_token_id", [END])
        for beams in (1, 3):
            p.model.generation_config.update(**changes, num_beams=beams)
            theirs = oracle.generated(p.model, p.rows, LENGTH, END, pad_token_id=PAD, **({"eos_token_id": ends}))
            for padding in ("left", "right"):
                ours = fr.generate(p.m, prompts(p, padding)).entries
                assert torch.equal(filled(ours, ends), filled(theirs, ends)), f"{which}, {beams} beams, {padding}"
            moved |= set() if torch.equal(ours, plain) else {which}
    assert len(moved) >= len(settings) - 2, f"these change nothing here: {settings.keys() - moved}"


@pytest.mark.parametrize("name", FAMILIES)
def test_a_greedy_roll_in_is_what_generate_outputs(name, of_family):
    p = of_family(name)
    p.model.generation_config.update(**SETTINGS["all"])
    spoken = oracle.generated(p.model, p.rows, LENGTH, END, pad_token_id=PAD).tolist()
    theirs = [oracle.until(own, END)[: sum(row.counts)] for row, own in zip(p.rows, spoken, strict=True)]
    for engine in engines(p.m):
        method = fr.scheduled_sampling(0.0, draw="greedy", engine=engine)
        history = method.transform(p.m, p.batch, step=0, key=KEY).history
        for r, (row, own) in enumerate(zip(p.rows, theirs, strict=True)):
            assert history[r, row.prompt : row.prompt + len(own)].tolist() == own, f"{engine}, row {r}"


def processed(logits: Tensor, ids: list[int], start: int, source: Tensor | None) -> Tensor:
    """What stands in a list of processors that this test makes itself."""
    made: list[Any] = [
        RepetitionPenaltyLogitsProcessor(1.3), NoRepeatNGramLogitsProcessor(2),
        NoBadWordsLogitsProcessor([[4], [6, 8]]),
        MinNewTokensLengthLogitsProcessor(start, 3, END), ExponentialDecayLengthPenalty((2, 1.2), END, start),
        SuppressTokensLogitsProcessor([5]), SuppressTokensAtBeginLogitsProcessor(BEGIN, start),
    ]  # fmt: skip
    if source is not None:
        made.insert(0, EncoderRepetitionPenaltyLogitsProcessor(1.4, source))
    for each in made:
        logits = each(torch.tensor([ids]), logits)
    return logits


MIXED = {
    "encoder_repetition_penalty": 1.4, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2,
    "bad_words_ids": [[4], [6, 8]], "min_new_tokens": 3, "exponential_decay_length_penalty": (2, 1.2),
    "suppress_tokens": [5], "begin_suppress_tokens": BEGIN,
}  # fmt: skip


@torch.no_grad()
def naive(p: Prepared, row: Row, ratio: float, draw: str) -> list[int]:
    """A forward over the whole prefix of this row alone for every entry, and the processors by hand."""
    history = list(row.gold)
    for t in range(len(history)):
        if not row.counts[t] or oracle.coin(row, t, ratio, KEY, STEP):
            continue
        source = row.source.get("input_ids")
        start = 1 + row.prompt
        logits = oracle.predicted(p.model, row, history[:t])[-1:]
        logits = processed(logits, [row.first, *history[:t]], start, source)[0]
        noise = float(uniform(fold(KEY, "draw", STEP), torch.tensor(row.number), torch.tensor(t)))
        history[t] = choose(logits, draw, noise)
    return history


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5", "bart", "m2m_100", "whisper"])
def test_mixed_histories_and_gradients_are_the_naive_loops(name, of_family):
    p = of_family(name)
    audio = name == "whisper"
    settings = {k: v for k, v in MIXED.items() if k != "encoder_repetition_penalty" or (not audio and p.rows[0].source)}
    p.model.generation_config.update(**settings)
    moved = 0
    for draw in ("greedy", "sample"):
        histories = [naive(p, row, 0.5, draw) for row in p.rows]
        without = p.histories(0.5, draw)
        moved += sum(a != b for a, b in zip(histories, without, strict=True))
        p.model.zero_grad()
        p.loss(histories).backward()
        expected = {n: w.grad.clone() for n, w in p.model.named_parameters() if w.grad is not None}
        scale = max(float(g.abs().max()) for g in expected.values())
        for engine in [
            *engines(p.m),
            "auto",
            fr.Draft(torch.float64),
            *([fr.Window(3)] if "window" in engines(p.m) else []),
        ]:
            p.model.zero_grad()
            method = fr.scheduled_sampling(0.5, draw=draw, engine=engine)
            found = method.run(p.m, p.batch, step=STEP, key=KEY)
            oracle.assert_histories(found.fed, histories)
            (found.total / found.count).backward()
            for n, grad in expected.items():
                weight = p.model.get_parameter(n).grad
                torch.testing.assert_close(weight, grad, rtol=0, atol=1e-9 * scale, msg=f"{engine}: {n}")
    assert moved >= 2


@pytest.mark.parametrize("method", [fr.two_pass(0.5), fr.parallel(0.5, passes=9), fr.scheduled_sampling(0.5, engine=2)])
def test_methods_of_passes_follow_them_too(method, of_family):
    p = of_family("gpt2")
    banned = list(range(4, 20))
    p.model.generation_config.update(suppress_tokens=banned)
    fed = method.transform(p.m, p.batch, step=STEP, key=KEY)
    own = (fed.history != p.batch.history) & p.batch.mask
    assert bool(own.any())
    assert not bool(torch.isin(fed.history[own], torch.tensor(banned)).any())


def test_sampling_follows_temperature_and_truncation(of_family):
    p = of_family("gpt2")
    p.model.generation_config.update(do_sample=True, top_k=1, temperature=0.5)
    sampled = fr.generate(p.m, prompts(p, "right"), draw="sample").entries
    greedy = fr.generate(p.m, prompts(p, "right")).entries
    assert torch.equal(sampled, greedy)
    loose = fr.generate(p.m, prompts(p, "right"), draw=fr.draws.sample(temperature=3.0)).entries
    assert not torch.equal(loose, greedy)  # a draw with a temperature of its own is taken at its word
    mixed = fr.scheduled_sampling(0.0, draw="sample").transform(p.m, p.batch, step=0, key=KEY).history
    assert torch.equal(
        mixed, fr.scheduled_sampling(0.0, draw="greedy").transform(p.m, p.batch, step=0, key=KEY).history
    )


def test_they_are_listed_and_can_be_left_out(of_family):
    p = of_family("gpt2")
    p.model.generation_config.update(no_repeat_ngram_size=2, stop_strings=["."], do_sample=True)
    m = hf.adapt(p.model)
    followed, left = [str(each) for each in m.findings if each.name == "generation"]
    assert "no_repeat_ngram_size = 2" in followed
    assert "stop_strings" in left
    assert "do_sample" in left
    off = hf.adapt(p.model, generation_config=None)
    batch = prompts(p, "right")
    plain = oracle.generated(p.model, p.rows, LENGTH, None, no_repeat_ngram_size=0, do_sample=False, stop_strings=None)
    assert torch.equal(fr.generate(off, batch, length=LENGTH, end=None).entries, plain)
    other = hf.adapt(p.model, generation_config=GenerationConfig(repetition_penalty=1.7, eos_token_id=END))
    for each in (other, pickle.loads(pickle.dumps(other)), copy.deepcopy(other)):
        rules = each.generation_rules(batch)
        assert rules is not None
        assert rules.config.repetition_penalty == 1.7
    with pytest.raises(fr.UserError, match="generation_config must be 'own', a transformers GenerationConfig or None"):
        hf.adapt(p.model, generation_config={"num_beams": 3})
    assert not any(each.name == "generation" for each in off.findings)


LANGUAGES = torch.tensor([5, 9, 5, 11])


@pytest.mark.parametrize("name", ["mbart", "m2m_100", "bart"])
def test_a_forced_first_id_is_never_replaced_nor_scored(name, of_family):
    p = of_family(name)
    labels = torch.cat([LANGUAGES[:, None], p.inputs["labels"]], 1)
    inputs = {**p.inputs, "labels": labels, "decoder_input_ids": None}
    fed = torch.cat([torch.full((4, 1), 2), labels[:, :-1].clamp_min(0)], 1)
    inputs["decoder_input_ids"] = fed
    batch = p.m.batch(**inputs, forced_bos_token_id=LANGUAGES)
    assert not bool(batch.replaceable[:, 0].any())
    assert bool(batch.replaceable[:, 1].any())
    assert bool(batch.mask[:, 0].all())  # it counts in the loss, as in the model's own
    own = p.model(**inputs, decoder_attention_mask=torch.ones_like(fed)).loss
    torch.testing.assert_close(fr.teacher_forcing()(p.m, batch, step=0, key=0), own, rtol=1e-10, atol=1e-10)
    mixed = fr.scheduled_sampling(0.0, draw="greedy").run(p.m, batch, step=0, key=0)
    assert torch.equal(mixed.fed.history[:, 0], LANGUAGES)
    assert mixed.report["eligible"] == int(batch.replaceable.sum())
    scored = p.m.scored(batch)
    assert int(scored.mask.sum()) == int(batch.mask.sum()) - 4
    assert not bool(scored.mask[:, 0].any())
    # an id of another language is predicted where its row's is not forced
    free = fr.generate(p.m, batch, length=4, end=None).entries
    assert torch.equal(free[:, 0], LANGUAGES)
    for r, language in enumerate(LANGUAGES.tolist()):
        p.model.generation_config.forced_bos_token_id = language
        theirs = oracle.generated(p.model, p.rows[r : r + 1], 4, None, decoder_start_token_id=int(fed[0, 0]))
        assert torch.equal(free[r : r + 1], theirs)


def test_the_models_own_forced_id_needs_no_argument(of_family):
    p = of_family("m2m_100")
    p.model.generation_config.forced_bos_token_id = 6
    labels = torch.cat([torch.full((4, 1), 6), p.inputs["labels"]], 1)
    batch = p.m.batch(**{**p.inputs, "labels": labels})
    assert not bool(batch.replaceable[:, 0].any())
    assert not bool(p.m.scored(batch).mask[:, 0].any())
    free = p.m.batch(**{**p.inputs, "labels": labels}, forced_bos_token_id=None)
    assert bool(free.replaceable[:, 0].all())
    with pytest.warns(UserWarning, match="forces 6 there"):
        p.m.batch(**p.inputs)
    with pytest.raises(fr.UserError, match=r"ids by row \(batch,\) with batch = 4"):
        p.m.batch(**p.inputs, forced_bos_token_id=[1, 2])
    with pytest.raises(fr.UserError, match=f"and the model has {VOCAB} ids"):
        p.m.batch(**p.inputs, forced_bos_token_id=VOCAB)


def whisper_settings(config: Any) -> None:
    config.is_multilingual, config.no_timestamps_token_id = True, 13
    config.lang_to_id = {"<|en|>": 9, "<|fr|>": 10, "<|de|>": 11}
    config.task_to_id = {"transcribe": 12, "translate": 14}
    config.return_timestamps = False


@pytest.mark.parametrize("language", ["en", "fr", None, ["en", "fr", "de", "en"]])
def test_whispers_prompt_is_known_and_not_replaced(language, of_family):
    p = of_family("whisper")
    config = p.model.generation_config
    whisper_settings(config)
    config.language, config.task, config.begin_suppress_tokens, config.suppress_tokens = (
        language,
        "transcribe",
        BEGIN,
        [5],
    )
    features = p.inputs["input_features"]
    ours = fr.generate(p.m, p.m.batch(input_features=features), length=LENGTH, end=END).entries
    prompt = p.model._retrieve_init_tokens(
        features, batch_size=4, generation_config=copy.deepcopy(config), config=p.model.config, num_segment_frames=10,
        kwargs={},
    )  # fmt: skip
    assert prompt.shape[1] == 4
    found = GenerationMixin.generate(p.model, input_features=features, decoder_input_ids=prompt, do_sample=False)[:, 4:]
    assert torch.equal(filled(ours, [END]), filled(found, [END]))
    labels = torch.cat([prompt[:, 1:], p.inputs["labels"]], 1)
    batch = p.m.batch(input_features=features, labels=labels)
    assert not bool(batch.replaceable[:, :3].any())
    assert bool(batch.replaceable[:, 3].all())
    assert int(p.m.scored(batch).mask.sum()) == int(batch.mask.sum()) - 12
    rolled = fr.scheduled_sampling(0.0, draw="greedy").transform(p.m, batch, step=0, key=0).history
    assert torch.equal(rolled[:, :3], prompt[:, 1:])
    for r, spoken in enumerate(found.tolist()):
        own = oracle.until(spoken, END)[: int((labels[r] != -100).sum()) - 3]
        assert rolled[r, 3 : 3 + len(own)].tolist() == own


NOT_FOLLOWED: dict[str, dict[str, Any]] = {
    "guidance_scale": {"guidance_scale": 3.0},
    "watermarking_config": {"watermarking_config": WatermarkingConfig(bias=9.0, seeding_scheme="selfhash")},
    "num_return_sequences": {"num_beams": 3, "num_return_sequences": 2},
    "penalty_alpha": {"penalty_alpha": 0.6},
}


@pytest.mark.parametrize("name", ["gpt2", "t5"])
@pytest.mark.parametrize("which", NOT_FOLLOWED)
def test_a_setting_that_is_not_followed_is_listed_and_does_nothing_beside_one_that_is(name, which, of_family):
    p = of_family(name)
    p.model.generation_config.suppress_tokens = [5, 14]
    p.model.generation_config.num_beams = NOT_FOLLOWED[which].get("num_beams", 1)
    expected = fr.generate(p.m, prompts(p, "left")).entries
    for setting, value in NOT_FOLLOWED[which].items():
        setattr(p.model.generation_config, setting, value)
    assert torch.equal(fr.generate(p.m, prompts(p, "left")).entries, expected)
    assert any(f"not followed, of generation_config: {which}" in str(finding) for finding in hf.adapt(p.model).findings)
