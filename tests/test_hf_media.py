"""Models that read images beside ids: several a row, or none; encoded once, never replaced, never lost."""

from functools import cache
from typing import Any

import pytest
import torch

import freerun as fr
import oracles_hf as oracle
from builders import assert_same_gradients, gradients
from families_media import IMAGE, MEDIA
from family_configs import classes, model_of, tiny
from family_media import media_of
from freerun import draws, hf
from freerun.batch import Batch
from freerun.errors import UserError
from freerun.types import Cached, Encoder
from oracles_hf import KEY, NUMBERS, STEP, Row, assert_histories, engines, full_prefix

EACH = list(MEDIA)
DRAWS = {"greedy": draws.Greedy(), "sample": draws.Sample(), "gumbel": draws.Sample(coupling="gumbel")}


@cache
def built(name: str) -> Any:
    return MEDIA[name].build()


@cache
def adapted(name: str) -> Any:
    return hf.adapt(built(name), example=MEDIA[name].inputs())


@cache
def rows_of(name: str) -> list[Row]:
    return MEDIA[name].rows(MEDIA[name].inputs(), NUMBERS)


def batch_of(name: str, padding: str = "right") -> Batch:
    return adapted(name).batch(**MEDIA[name].inputs(padding), rows=torch.tensor(NUMBERS))


@cache
def oracle_histories(name: str, ratio: float, draw: str) -> list[list[int]]:
    return [full_prefix(built(name), row, ratio, draw, KEY, STEP) for row in rows_of(name)]


def generated(name: str, row: Row, length: int) -> list[int]:
    """What the model's own ``generate`` adds to a row's prompt."""
    ids = torch.tensor([[row.first, *row.gold[: row.prompt]]])
    more = {key: value(ids) if callable(value) else value for key, value in row.source.items()}
    found = built(name).generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), **more, max_new_tokens=length, do_sample=False,
        eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return found[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("name", EACH)
def test_ratio_one_is_the_models_own_loss_and_gradient(name):
    model, m, family = built(name), adapted(name), MEDIA[name]
    for padding in ("right", "left"):
        inputs = family.inputs(padding)
        naive = oracle.loss(model, rows_of(name), [list(row.gold) for row in rows_of(name)])
        naively = gradients(model, naive)
        found = fr.scheduled_sampling(1.0).run(m, m.batch(**inputs), STEP, KEY)
        assert found.loss.item() == pytest.approx(naive.item(), rel=1e-10 if family.double else 1e-6)
        assert_same_gradients(gradients(model, found.loss), naively, 1e-10 if family.double else 2e-5)
        if padding == "right":
            assert found.loss.item() == pytest.approx(model(**inputs).loss.item(), rel=1e-6)


@pytest.mark.parametrize("name", EACH)
def test_ratio_zero_is_generate(name):
    m, rows = adapted(name), rows_of(name)
    free = [[*row.gold[: row.prompt], *generated(name, row, len(row.gold) - row.prompt)] for row in rows]
    assert oracle_histories(name, 0.0, "greedy") == free  # the oracle itself
    assert len({symbol for row, h in zip(rows, free, strict=True) for symbol in h[row.prompt :]}) >= 4
    for engine in ("auto", *engines(m), "draft"):
        outcome = fr.free_running(draw="greedy", engine=engine).run(m, batch_of(name), STEP, KEY)
        assert_histories(outcome.fed, free)


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("name", EACH)
def test_mixed_histories_are_the_full_prefix_oracles(name, draw):
    m, model = adapted(name), built(name)
    histories = oracle_histories(name, 0.5, draw)
    assert sum(a != b for row, h in zip(rows_of(name), histories, strict=True) for a, b in zip(row.gold, h)) >= 4  # noqa: B905
    for padding, engine in [("left", "auto"), *(("right", engine) for engine in (*engines(m), "draft", fr.Window(3)))]:
        if isinstance(engine, fr.Window) and not isinstance(m, Cached):
            continue
        outcome = fr.scheduled_sampling(0.5, draw=DRAWS[draw], engine=engine).run(m, batch_of(name, padding), STEP, KEY)
        assert_histories(outcome.fed, histories)
        assert outcome.report["exact"] == 1.0
    naive = oracle.loss(model, rows_of(name), histories)
    assert outcome.loss.item() == pytest.approx(naive.item(), rel=1e-10 if MEDIA[name].double else 1e-6)


@pytest.mark.parametrize("name", EACH)
@pytest.mark.slow  # tries every model anew: 15 s
def test_all_engines_are_there_without_an_example_too(name):
    """The first batch with images shows what the model can do with them."""
    m = hf.adapt(MEDIA[name].build())
    batch = m.batch(**MEDIA[name].inputs(), rows=torch.tensor(NUMBERS))
    assert isinstance(m, Cached)
    assert isinstance(m, Encoder)
    assert type(m).__name__ == type(adapted(name)).__name__
    assert_histories(fr.scheduled_sampling(0.5).run(m, batch, STEP, KEY).fed, oracle_histories(name, 0.5, "sample"))


@pytest.mark.parametrize("name", EACH)
def test_images_are_encoded_once_a_batch(name):
    """Roll-in and training share them where the model is one function in both, whatever the engine."""
    model, m = built(name), adapted(name)
    base = model.base_model
    tower = next(getattr(base, part) for part in ("vision_tower", "vision_model", "visual") if hasattr(base, part))
    seen: list[int] = []
    hook = tower.register_forward_hook(lambda *_: seen.append(1))
    batch = batch_of(name)
    for engine in ("auto", *engines(m), fr.Window(3)):
        seen.clear()
        fr.scheduled_sampling(0.3, engine=engine).run(m, batch, STEP, KEY)
        assert len(seen) == 1, engine
    hook.remove()


@pytest.mark.parametrize("name", EACH)
def test_images_are_never_replaced_and_the_batch_comes_back(name):
    m, inputs = adapted(name), MEDIA[name].inputs("left")
    batch = m.batch(**inputs)
    assert not bool((batch.history == IMAGE)[batch.replaceable].any())
    mixed = m.inputs(fr.free_running(draw="greedy").run(m, batch, STEP, KEY).fed)
    kept = inputs["labels"] == -100
    assert torch.equal(mixed["input_ids"][kept], inputs["input_ids"][kept])
    assert not torch.equal(mixed["input_ids"], inputs["input_ids"])
    assert all(torch.equal(mixed[key], value) for key, value in inputs.items() if key != "input_ids")


@pytest.mark.parametrize("images", [[2, 2, 2, 2], [1, 1, 1, 1], [0, 0, 2, 0], [0, 0, 0, 0]], ids=str)
@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "gemma3", "idefics2", "paligemma"])
def test_any_number_of_images_a_row(name, images):
    family, model, m = MEDIA[name], built(name), adapted(name)
    counts = images if name != "qwen2_vl" or sum(images) <= 5 else [1, 2, 0, 2]
    inputs = family.inputs(images=counts)
    if not sum(counts):
        inputs = {key: value for key, value in inputs.items() if not key.startswith(("pixel", "image"))}
    rows = family.rows(inputs, NUMBERS, counts)
    batch = m.batch(**inputs, rows=torch.tensor(NUMBERS))
    histories = [full_prefix(model, row, 0.3, "sample", KEY, STEP) for row in rows]
    for engine in engines(m):
        outcome = fr.scheduled_sampling(0.3, engine=engine).run(m, batch, STEP, KEY)
        assert_histories(outcome.fed, histories)
    assert outcome.loss.item() == pytest.approx(oracle.loss(model, rows, histories).item(), rel=1e-6)
    part = torch.tensor([3, 2])
    some = fr.scheduled_sampling(0.3).run(m, batch.select(part), STEP, KEY)
    assert_histories(some.fed, [histories[r] for r in part.tolist()])


@pytest.mark.parametrize("name", EACH)
def test_generate_is_generate(name):
    m, inputs, rows = adapted(name), MEDIA[name].inputs("left"), rows_of(name)
    prompts = {key: value for key, value in inputs.items() if key != "labels"}
    longest = max(row.prompt for row in rows) + 1
    ids, mask = torch.zeros(4, longest, dtype=torch.int64), torch.zeros(4, longest, dtype=torch.int64)
    kinds: dict[str, list[torch.Tensor]] = {}
    for r, row in enumerate(rows):
        ids[r, longest - row.prompt - 1 :] = torch.tensor([row.first, *row.gold[: row.prompt]])
        mask[r, longest - row.prompt - 1 :] = 1
    for key, value in rows[0].source.items():
        if callable(value):
            kinds[key] = [row.source[key](ids[r : r + 1])[:, :longest] for r, row in enumerate(rows)]
    prompts |= {"input_ids": ids, "attention_mask": mask, **{key: torch.cat(value) for key, value in kinds.items()}}
    if name == "paligemma":
        prompts["token_type_ids"] = torch.zeros_like(ids)
    found = fr.generate(m, m.batch(**prompts), length=6).entries.tolist()
    assert found == [generated(name, row, 6) for row in rows]


def test_two_images_a_row_are_in_the_loss():
    """Four rows, pixels (8, 3, h, w): images of which no row could be cut were left out."""
    family = MEDIA["llava"]
    model, inputs = family.build(), family.inputs(images=[2, 2, 2, 2])
    assert inputs["pixel_values"].shape == (8, 3, 8, 8)
    m = hf.adapt(model)
    found = fr.teacher_forcing()(m, m.batch(**inputs), step=0).item()
    assert found == pytest.approx(model(**inputs).loss.item(), rel=1e-6)
    blind = {key: value for key, value in inputs.items() if key != "pixel_values"}
    assert abs(found - model(**blind).loss.item()) > 0.01


def test_what_is_learnt_before_an_image_counts_and_is_not_replaced():
    model, m, family = built("llava"), adapted("llava"), MEDIA["llava"]
    inputs = family.inputs()
    labels = inputs["input_ids"].masked_fill((inputs["attention_mask"] == 0) | (inputs["input_ids"] == IMAGE), -100)
    inputs["labels"] = labels
    batch = m.batch(**inputs)
    outcome = fr.free_running(draw="greedy").run(m, batch, STEP, KEY)
    assert fr.teacher_forcing()(m, batch, step=0).item() == pytest.approx(model(**inputs).loss.item(), rel=1e-6)
    last = (batch.history == IMAGE).long().cumsum(1).argmax(1)
    after = torch.arange(batch.time) > last[:, None]
    imageless = ~(batch.history == IMAGE).any(1)
    assert torch.equal(batch.replaceable, batch.mask & (after | imageless[:, None]))
    assert outcome.report["replaced"] == int(batch.replaceable.sum())


def test_an_images_id_among_own_entries_stands_for_itself():
    """As in ``generate``, whose later steps see no image."""
    model, m = MEDIA["llava"].build(), None
    inputs = MEDIA["llava"].inputs()
    with torch.no_grad():
        model.lm_head.weight[IMAGE] = 3 * model.lm_head.weight[9]
    m = hf.adapt(model, example=inputs)
    rows = MEDIA["llava"].rows(inputs, NUMBERS)
    for engine in engines(m):
        fed = fr.free_running(draw="greedy", engine=engine).run(m, m.batch(**inputs), STEP, KEY).fed
        drawn = (fed.history == IMAGE) & fed.replaceable
        assert int(drawn.sum()) >= 1
        for r, row in enumerate(rows):
            ids = torch.tensor([[row.first, *row.gold[: row.prompt]]])
            length = len(row.gold) - row.prompt
            free = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **row.source, do_sample=False,
                                  max_new_tokens=length, eos_token_id=None, pad_token_id=0)  # fmt: skip
            assert fed.history[r, row.prompt : len(row.gold)].tolist() == free[0, ids.shape[1] :].tolist()


def _changed(**changes: Any) -> dict[str, Any]:
    return MEDIA["llava"].inputs() | changes


def _without_tokens() -> torch.Tensor:
    ids = MEDIA["llava"].inputs()["input_ids"]
    return ids.masked_fill(ids == IMAGE, 5)


REFUSED: dict[str, tuple[Any, str]] = {
    "an image too few": (lambda: _changed(pixel_values=torch.randn(4, 3, 8, 8)), r"pixel_values \(4, 3, 8, 8\)"),
    "an image too many": (lambda: _changed(pixel_values=torch.randn(6, 3, 8, 8)), "tokens that stand for image"),
    "images without tokens": (lambda: _changed(input_ids=_without_tokens()), "pixel_values"),
    "an image a row, all tokens cut off": (
        lambda: _changed(input_ids=_without_tokens(), pixel_values=torch.randn(4, 3, 8, 8)),
        r"pixel_values \(4, 3, 8, 8\).*truncation",
    ),
    "embeddings": (lambda: _changed(inputs_embeds=torch.randn(4, 21, 16)), "inputs_embeds.*freerun"),
    "entries of no row": (lambda: _changed(cross_attn=torch.ones(7, 3)), r"cross_attn \(7, 3\).*4 rows"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_given_to_rows_is_refused_by_name(case):
    make, message = REFUSED[case]
    with pytest.raises(UserError, match=message):
        adapted("llava").batch(**make())


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl", "llava"])
def test_padding_on_the_left_comes_back_with_the_models_own_positions(name):
    """Of images of several lines, positions are fewer than tokens: none are made up."""
    model, m, inputs = built(name), adapted(name), MEDIA[name].inputs("left")
    naive = oracle.loss(model, rows_of(name), [list(row.gold) for row in rows_of(name)])
    assert model(**m.inputs(m.batch(**inputs))).loss.item() == pytest.approx(naive.item(), rel=1e-6)


def test_an_earlier_calls_images_move_no_positions():
    """A model keeps how far its images moved positions, and steps without images would follow it."""
    _, kind = classes()["Qwen3_5ForConditionalGeneration"]
    torch.manual_seed(0)
    model = model_of("Qwen3_5ForConditionalGeneration", tiny(kind)).eval()
    m, ids = hf.adapt(model), torch.randint(4, 29, (3, 9), generator=torch.Generator().manual_seed(1))
    batch = m.batch(input_ids=ids, labels=ids)
    expected = fr.free_running(draw="greedy", engine="jacobi").transform(m, batch, step=0, key=0).history
    model.model.rope_deltas = torch.tensor([[-3], [-5]])  # of two rows with images
    assert torch.equal(
        fr.free_running(draw="greedy", engine="step").transform(m, batch, step=0, key=0).history, expected
    )


def test_a_start_of_vision_among_own_entries_stands_for_itself():
    """Positions follow the ids there: an own start without an image after it would be taken for one."""
    name = "Qwen2_5OmniThinkerForConditionalGeneration"
    torch.manual_seed(0)
    model = model_of(name, tiny(classes()[name][1])).double().eval()
    media: Any = media_of(model)
    inputs, start = media.inputs("right"), model.config.vision_start_token_id
    hook = lambda _, __, out: out.index_fill(-1, torch.tensor([start]), 9.0)  # noqa: E731
    model.get_output_embeddings().register_forward_hook(hook)
    m = hf.adapt(model, example=inputs)
    for engine in ("jacobi", *engines(m)[1:]):
        fed = fr.free_running(draw="greedy", engine=engine).transform(m, m.batch(**inputs), step=0, key=0)
        assert bool((fed.history[fed.replaceable] == start).all())


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_trainer_learns_with_its_images_like_the_stock_one(tmp_path):
    """Four rows with two images each: the logged loss is transformers' own."""
    import transformers

    inputs = MEDIA["llava"].inputs(images=[2, 2, 2, 2])
    losses: list[list[float]] = []
    for kind, more in ((transformers.Trainer, {}), (hf.Trainer, {"method": fr.teacher_forcing()})):
        arguments = transformers.TrainingArguments(
            str(tmp_path), max_steps=2, logging_steps=1, use_cpu=True, report_to="none", save_strategy="no",
            per_device_train_batch_size=4, dataloader_pin_memory=False, remove_unused_columns=False, learning_rate=0.01,
        )  # fmt: skip
        data: Any = list(range(4))
        trainer = kind(
            MEDIA["llava"].build(), arguments, train_dataset=data, data_collator=lambda _: dict(inputs), **more
        )
        trainer.train()
        losses.append([line["loss"] for line in trainer.state.log_history if "loss" in line])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[0][0] == pytest.approx(MEDIA["llava"].build()(**inputs).loss.item(), rel=1e-5)
