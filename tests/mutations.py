"""Ways to break the Hugging Face adapters and the roll-in, and the tests that each must turn red."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_FAMILIES = "tests/test_hf_families.py::"
_TRAPS = "tests/test_hf_traps.py::"

ONE = _FAMILIES + "test_ratio_one_is_the_models_own_loss_and_gradient"
ZERO = _FAMILIES + "test_ratio_zero_is_generate"
MIXED = _FAMILIES + "test_mixed_histories_are_the_full_prefix_oracles"
BACK = _FAMILIES + "test_inputs_are_the_models_own_arguments"
CHECK = _FAMILIES + "test_a_family_passes_its_check_and_keeps_what_it_can"
STATES = _FAMILIES + "test_a_state_may_be_left_and_come_back_to"
_OLDER = "tests/test_autocast.py::test_in_one_autocast_nothing_is_older_than_the_weights[step]"
DROPOUT = _TRAPS + "test_dropout_rests_in_the_roll_in_and_works_in_the_loss"
PADS = _TRAPS + "test_a_models_own_pad_and_start_are_symbols_like_others"
HOLES = "tests/test_hf_holes.py::test_holes_in_a_completion_neither_count_nor_are_replaced"
PACKED = "tests/test_hf_holes.py::test_packed_documents_are_numbered_by_the_global_row"
FIRSTS = "tests/test_hf_holes.py::test_documents_that_learn_nothing_move_no_coins"
_PREDICTIONS = "tests/test_hf_predictions.py::"
COUNTED = _PREDICTIONS + "test_settings_that_count_a_prompt_do_not_count_its_padding"
LANGUAGES = _PREDICTIONS + "test_languages_by_row"
UNITS = "tests/test_hf_holes.py::test_schedules_count_steps_samples_and_epochs"
INSIDE = "tests/test_hf_holes.py::test_an_encoder_runs_inside_the_wrapper_where_it_has_a_gradient"
_MEDIA = "tests/test_hf_media.py::"
LEFT = _MEDIA + "test_padding_on_the_left_comes_back_with_the_models_own_positions"
IMAGES = _MEDIA + "test_mixed_histories_are_the_full_prefix_oracles"
END = _TRAPS + "test_an_end_symbol_that_the_model_says_ends_nothing"


@dataclass(frozen=True)
class Mutation:
    """One wrong line.

    Args:
        name: what is wrong.
        function: where, by its qualified name.
        right: text that stands in this function exactly ``times`` times.
        wrong: what is put in its place.
        tests: those of which at least one must fail.
        times: how often the text stands there.
        each: every one of the tests must fail: one of every group of families.
    """

    name: str
    function: str
    right: str
    wrong: str
    tests: tuple[str, ...]
    times: int = 1
    each: bool = False

    def find(self, source: Path) -> tuple[Path, int, int]:
        """The file below ``source``, and where in its text the function begins and ends."""
        found = [
            (path, start, end)
            for path in sorted(source.rglob("*.py"))
            if f"def {self.function.split('.')[-1]}(" in (text := path.read_text())
            for name, start, end in _functions(text)
            if name == self.function and text.count(self.right, start, end) == self.times
        ]
        if len(found) != 1:
            raise LookupError(
                f"{self.name}: {len(found)} functions {self.function} hold this {self.times} times, not one:\n"
                f"    {self.right}\nthe mutation has to follow the code"
            )
        return found[0]


def _functions(text: str) -> Iterator[tuple[str, int, int]]:
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    waiting: list[tuple[str, ast.AST]] = [("", ast.parse(text))]
    while waiting:
        prefix, node = waiting.pop()
        for child in ast.iter_child_nodes(node):
            name = prefix
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                name = f"{prefix}{child.name}."
                yield name[:-1], starts[child.lineno - 1], starts[child.end_lineno or child.lineno]
            waiting.append((name, child))


MUTATIONS: tuple[Mutation, ...] = (
    Mutation("no shift: a token sees itself", "HuggingFaceModel.read_ids",
             'input_ids": torch.cat([context.first, history], 1)}',
             'input_ids": torch.cat([history, history[:, -1:]], 1)}',
             (ONE + "[gpt2-float64]", ZERO + "[gpt2]")),
    Mutation("double shift: a token sees too little", "HuggingFaceModel.read_ids",
             'input_ids": torch.cat([context.first, history], 1)}',
             'input_ids": torch.cat([context.first, context.first, history[:, :-1]], 1)}',
             (ONE + "[gpt2-float64]", ZERO + "[gpt2]")),
    Mutation("no shift in a decoder", "EncoderDecoder.batch", "history = torch.cat([fed[:, 1:], targets[:, -1:]], 1)",
             "history = fed.clone()", (ONE + "[bart-float64]", ZERO + "[bart]", ZERO + "[whisper]")),
    Mutation("the start symbol is dropped", "EncoderDecoder.batch", "context = SourceContext(fed[:, :1],",
             "context = SourceContext(fed[:, :1] * 0,", (ONE + "[bart-float64]", ZERO + "[mbart]")),
    Mutation("a language's id is a start symbol like others", "EncoderDecoder.shifted",
             "if labels is not None and own is not None:", "if labels is ...:",
             (_TRAPS + "test_two_languages_in_one_batch_keep_their_ids",)),
    Mutation("padding on the left is taken for text", "_present", "present = mask.bool()",
             "present = torch.ones_like(mask).bool()", (ONE + "[gpt2-float64]", MIXED + "[gpt2-greedy]")),
    Mutation("wrong positions after left padding, on the way back", "CausalModel.inputs",
             "(mask.long().cumsum(1) - 1).clamp_min(0)", "torch.arange(mask.shape[1]).expand_as(mask)",
             (BACK + "[gpt2-left]", _TRAPS + "test_padding_enters_nothing")),
    Mutation("wrong positions over the cache", "RaggedDecoding._call", "where = {name: positions}",
             "where = {name: positions + (positions > 4)}", (ZERO + "[gpt2]", CHECK + "[gpt2]")),
    Mutation("coins hang on the padding", "CausalModel.batch", "numbers = _numbers(row, rows,",
             "numbers = (~present).sum(1)[row] + _numbers(row, rows,",
             (MIXED + "[llama-sample]", _TRAPS + "test_padding_enters_nothing")),
    Mutation("prompts are replaced", "_learned", "eligible = mask & (expected == history)",
             "eligible = torch.ones_like(mask)",
             (_FAMILIES + "test_counts_and_eligibility", ZERO + "[llama]")),
    Mutation("prompts are learnt", "_learned", "mask = expected != -100",
             "mask, expected = torch.ones_like(history, dtype=torch.bool), history",
             (_FAMILIES + "test_counts_and_eligibility", ONE + "[llama-float64]")),
    Mutation("pads are replaced", "EncoderDecoder.batch", "eligible = mask & (history == targets)",
             "eligible = torch.ones_like(mask)",
             (ZERO + "[t5]", _FAMILIES + "test_a_prefix_that_the_user_gives_is_never_replaced")),
    Mutation("a prefix of the user's is replaced", "EncoderDecoder.batch", "eligible = mask & (history == targets)",
             "eligible = mask", (_FAMILIES + "test_a_prefix_that_the_user_gives_is_never_replaced",)),
    Mutation("packed documents are one text", "_starts", "starts = present & ((positions == 0) | first)",
             "return first", (_FAMILIES + "test_packed_documents_are_rows_of_their_own",)),
    Mutation("the history comes back a place too early", "CausalModel.batch", "layout=Layout(collated, own[:, 1:])",
             "layout=Layout(collated, own[:, :-1])", (BACK + "[llama-right]",)),
    Mutation("the end symbol cuts the loss", "ScheduledSampling.mix_history",
             "return batch.made(history=done.history, replaced=replacement.replaced), "
             "{**report, **counts, **done.report()}",
             "ended = (done.history == getattr(model.inner.config, 'eos_token_id', None) or -1) & batch.replaceable\n"
             "        gone = ended.cumsum(1) - ended.long() > 0\n"
             "        fed = batch.replace(history=done.history, mask=batch.mask & ~gone)\n"
             "        return fed, {**report, **counts, **done.report()}", (END,)),
    Mutation("the cache is not cropped", "_Walk._decide", "self.state = self.model.crop(self.state, at)", "pass",
             (MIXED + "[gpt2-sample]", MIXED + "[llama-greedy]")),
    Mutation("the adapter's crop forgets nothing", "RaggedDecoding.crop", "lengths=lengths + 1, common_length=None)",
             "common_length=None)", (CHECK + "[gpt2]", MIXED + "[gpt2-sample]")),
    Mutation("rows picked from the cache are the first ones", "RaggedDecoding.select",
             "store = state.store.copied(rows, room)", "store = state.store.copied(torch.arange(len(rows)), room)",
             (CHECK + "[gpt2]",)),
    Mutation("rows picked from a stepped cache are the first ones", "CachedDecoding.select",
             "cache.reorder_cache(rows)", "cache.reorder_cache(torch.arange(len(rows)))",
             (STATES + "[bert2bert]", _FAMILIES + "test_beam_search_is_generates[mamba]")),
    Mutation("the cache is written in place", "CachedDecoding._read",
             "past = {} if state is None else {state.name: _copied(state.cache)}",
             "past = {} if state is None else {state.name: state.cache}",
             (STATES + "[falcon_h1]", STATES + "[bert2bert]")),
    Mutation("sliding windows are ignored", "RaggedDecoding._one_by_one", "if self.counts_back:", "if False:",
             (_TRAPS + "test_a_window_that_no_probe_reaches_is_kept",)),
    Mutation("soft-capping, scaling and bias are dropped", "SplitHead.logits",
             "return output.logits.reshape(*shape[:-1], -1)", "return self.inner.get_output_embeddings()(hidden)",
             (CHECK + "[gemma2]", CHECK + "[cohere]", CHECK + "[bart]")),
    Mutation("the encoder's mask is dropped", "EncoderDecoder.source",
            'if name != "attention_mask" or not self.accepts(name)}', "}",
             (CHECK + "[t5]", CHECK + "[bart]")),
    Mutation("pads that the model predicts are hidden", "HuggingFaceModel.read_ids",
             'torch.ones(ids.shape[:2], dtype=torch.int64, device=context.first.device)',
             '(ids != 0).long() if ids.dim() == 2 else torch.ones(ids.shape[:2], dtype=torch.int64)',
             (PADS + "[bert2bert-0]", PADS + "[bart-0]")),
    Mutation("dropout stays on in the roll-in", "eval_mode", "        module.training = False",
             "        module.training = True", (DROPOUT + "[gpt2]", DROPOUT + "[t5]")),
    Mutation("modes are not restored", "eval_mode", "module.__dict__[\"training\"] = True",
             "module.__dict__[\"training\"] = 0",
             (DROPOUT + "[gpt2]", _TRAPS + "test_modes_and_forwards_come_back_after_an_error[llama]")),
    Mutation("roll-in and training share an encoding that dropout has touched", "encode_once",
             "not differs_by_mode(model)", "bool(model)", (DROPOUT + "[t5]", DROPOUT + "[bart]")),
    Mutation("casts of weights outlive a roll-in", "own_casts", "        torch.clear_autocast_cache()", "        pass",
             (_OLDER,)),
    Mutation("a roll-in meets casts of older weights", "own_casts", "    torch.clear_autocast_cache()\n    #", "    #",
             (_OLDER,)),
    Mutation("roll-ins go through the wrapper", "HuggingFaceModel._forward",
             "model = self.model if torch.is_grad_enabled() else self.inner", "model = self.model",
             (_TRAPS + "test_a_wrapper_sees_the_training_forward_and_nothing_else",)),
    Mutation("vectors are scaled twice", "EmbeddingInputs.lookup", "return self._embeddings()(entries)",
             "return 4 * self._embeddings()(entries)",
             (_TRAPS + "test_soft_mixtures_are_looked_up_as_the_model_looks_up_symbols[gemma2-none]",)),
    Mutation("holes of -100 within a completion count", "CausalModel.batch",
             "expected = labels.flatten()[index.clamp_min(0)].masked_fill(~there, -100)[:, 1:]",
             "expected = labels.flatten()[index.clamp_min(0)].masked_fill(~there, -100)[:, 1:]\n"
             "        seen = (expected != -100).long()\n"
             "        inside = seen.cummax(1).values * seen.flip(1).cummax(1).values.flip(1) > 0\n"
             "        expected = torch.where(inside, history, expected)",
             tuple(f"{HOLES}[{name}]" for name in ("gpt2", "mistral", "mamba")), each=True),
    Mutation("holes of -100 within a completion are replaced", "_learned",
             "eligible = mask & (expected == history)",
             "seen = mask.long()\n"
             "    eligible = seen.cummax(1).values * seen.flip(1).cummax(1).values.flip(1) > 0",
             tuple(f"{HOLES}[{name}]" for name in ("gpt2", "mistral", "mamba")), each=True),
    Mutation("holes of -100 within labels are replaced", "EncoderDecoder.batch",
             "eligible = mask & (history == targets)", "eligible = mask.flip(1).long().cummax(1).values.flip(1) > 0",
             tuple(f"{HOLES}[{name}]" for name in ("t5", "bart")), each=True),
    Mutation("holes of -100 within labels count", "EncoderDecoder.batch", "mask = labels != -100",
             "mask = (labels != -100).long().flip(1).cummax(1).values.flip(1) > 0\n"
             "        labels = labels.clamp_min(0)",
             tuple(f"{HOLES}[{name}]" for name in ("t5", "bart")), each=True),
    Mutation("packed documents are numbered by the micro-batch's row", "_numbers", "if rows is None else",
             "if rows is None or packed else", tuple(f"{PACKED}[{name}]" for name in ("gpt2", "mistral")), each=True),
    Mutation("rows are numbered by the micro-batch", "AccumulationWindow.numbered",
             "self.firsts[self.micro] + number", "number",
             ("tests/test_hf_holes.py::test_packed_micro_batches_are_one_big_batch[padded-(2, 4)]",
              "tests/test_hf_holes.py::test_packed_micro_batches_are_one_big_batch[flattened-(2, 4)]",
              "tests/test_hf_trainer.py::test_accumulation_is_one_big_batch[sampling-t5-4]",
              "tests/test_hf_trainer.py::test_accumulation_is_one_big_batch[sampling-llama-4]"), each=True),
    Mutation("documents are numbered by their layout", "AccumulationWindow.numbered", "batch.mask.any(1).cumsum(0)",
             "torch.ones_like(batch.mask[:, 0]).cumsum(0)", (FIRSTS,)),
    Mutation("settings that count a prompt count its padding", "_counts_padding", "return bool(counted or",
             "return bool(counted and",
             tuple(f"{COUNTED}[{case}-0]" for case in ("a length with the prompt", "a least length")), each=True),
    Mutation("languages by row are the model's own", "_forced", "return -1 if first ==", "return -1 if 0 !=",
             (LANGUAGES + "[Seq2SeqTrainer]", LANGUAGES + "[Trainer]"), each=True),
    Mutation("the first tokens of packed documents are targets", "has_targets", "first = first | (positions == 0)",
             "first = first & (positions == 0)",
             ("tests/test_hf_holes.py::"
              "test_a_packed_micro_batch_of_which_only_first_tokens_have_labels_has_nothing_to_learn",)),
    Mutation("an encoder with gradient runs outside of the wrapper", "SourceEncoding.encode",
             "(self.model is not self.inner or self._augments())", "self._augments()",
             tuple(f"{INSIDE}[{name}]" for name in ("t5", "bart", "bert2gpt2")), each=True),
    Mutation("a step's samples forget the accumulation", "MethodRunner._rows",
             "return accumulate * world", "return world", (UNITS + "[sample-(2, 4)]",)),
    Mutation("a schedule of samples counts steps", "MethodRunner._step", "sample=step * self._rows()", "sample=step",
             tuple(f"{UNITS}[sample-{split}]" for split in ("(8, 1)", "(2, 4)")), each=True),
    Mutation("a schedule of epochs stands still", "MethodRunner._step", "epoch=self.trainer.state.epoch or 0.0",
             "epoch=0.0", tuple(f"{UNITS}[epoch-{split}]" for split in ("(8, 1)", "(2, 4)")), each=True),
    Mutation("positions are counted over images", "CausalModel.inputs", " and self.from_zero:", ":",
             (LEFT + "[qwen2_vl]", LEFT + "[qwen3_vl]"), each=True),
    Mutation("images of other rows", "entries_of", "first = counts.cumsum(0) - counts", "first = counts * 0",
             (IMAGES + "[llava-greedy]", IMAGES + "[qwen2_vl-greedy]"), each=True),
    Mutation("what comes before an image is replaced", "_learned", "if media.known is not None:", "if False:",
             (_MEDIA + "test_what_is_learnt_before_an_image_counts_and_is_not_replaced",)),
    Mutation("an earlier call's images move positions", "HuggingFaceModel.forget_images",
             "self.inner.base_model.rope_deltas = None", "pass",
             (_MEDIA + "test_an_earlier_calls_images_move_no_positions",)),
    Mutation("an own start of vision is taken for an image's", "HuggingFaceModel._own_marks",
             "stands | torch.isin(history, history.new_tensor(media.marks)) & after & batch.replaceable[:, :-1]",
             "stands", (_MEDIA + "test_a_start_of_vision_among_own_entries_stands_for_itself",)),
    Mutation("recurrent states are written in place", "_copied", "copy.copy(layer) if _grows(layer) else "
             "copy.deepcopy(layer)", "copy.copy(layer)", (STATES + "[mamba]", STATES + "[lfm2]"), each=True),
)  # fmt: skip
