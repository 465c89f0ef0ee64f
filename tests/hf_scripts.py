"""The structure of four official scripts (translation, summarisation, clm, TRL's sft), with the trainer as an argument.

Run: torchrun --nproc-per-node 2 tests/hf_scripts.py FOLDER
"""

import itertools
import os
import random
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy
import sacrebleu
import torch
import transformers
import trl
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import DataCollatorForSeq2Seq, default_data_collator

import freerun as fr
from freerun import hf
from hf_trainer_world import CHECKPOINTING, SETTINGS, apart

LETTERS = "abcdefgh"
METHODS: dict[str, Any] = {
    "stock": "stock", "forcing": fr.teacher_forcing(),
    "sampling": fr.scheduled_sampling(fr.schedules.linear(start=1.0, end=0.3, steps=4)),
}  # fmt: skip


def tokenizer(template: str = "$A </s>") -> Any:
    """A symbol for each letter; ``template`` has what stands around a text."""
    symbols = ["<pad>", "</s>", "<s>", "<unk>", "▁", *LETTERS, ":"]
    made = Tokenizer(models.WordLevel({symbol: i for i, symbol in enumerate(symbols)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Split("", "isolated")])
    made.decoder = decoders.Sequence([decoders.Fuse(), decoders.Metaspace()])
    made.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("</s>", 1), ("<s>", 2)])
    names: Any = {"pad_token": "<pad>", "eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, **names)


def framed() -> Any:
    """The same with a start symbol."""
    return tokenizer("<s> $A </s>")


def languages(kind: Any) -> Any:
    """A tokenizer of mBART's, whose labels hold the id of a language."""
    known = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((each, -1.0) for each in "▁" + LETTERS)]
    return kind(vocab=known, src_lang="en_XX", tgt_lang="fr_XX")


def texts(number: int, seed: int) -> list[tuple[str, str]]:
    """Words, and the same words backwards."""
    chosen = random.Random(seed)
    words = ["".join(chosen.choices(LETTERS, k=chosen.randrange(1, 7))) for _ in range(number)]
    return [(word, word[::-1]) for word in words]


# -- models of the scripts

_BART: Any = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "dropout": 0.0,
              "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32,
              "max_position_embeddings": 48}  # fmt: skip


def t5(words: Any) -> Any:
    sizes: Any = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0}
    ids: Any = {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(vocab_size=len(words), **sizes, **ids))


def bart_like(name: str, start: int | None = None) -> Callable[[Any], Any]:
    def build(words: Any) -> Any:
        # special ids of the tokenizer, as a checkpoint has them
        ids = {f"{kind}_token_id": getattr(words, f"{kind}_token_id") for kind in ("pad", "eos", "bos")}
        begin = words.eos_token_id if start is None else start
        config = getattr(transformers, f"{name}Config")(
            vocab_size=len(words), decoder_start_token_id=begin, **ids, **_BART
        )
        head = "MTModel" if name == "Marian" else "ForConditionalGeneration"
        return getattr(transformers, f"{name}{head}")(config)

    return build


def causal(name: str, **more: Any) -> Callable[[Any], Any]:
    def build(words: Any) -> Any:
        sizes: Any = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        if name == "GPT2":
            sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64} | {
                f"{where}_pdrop": 0.0 for where in ("resid", "embd", "attn")
            }
        ids = {f"{kind}_token_id": getattr(words, f"{kind}_token_id") for kind in ("pad", "eos", "bos")}
        config = getattr(transformers, f"{name}Config")(vocab_size=len(words), **sizes, **ids, **more)
        return getattr(transformers, f"{name}{'LMHeadModel' if name == 'GPT2' else 'ForCausalLM'}")(config)

    return build


@dataclass(frozen=True, eq=False)
class Variant:
    """One way in which a script is run.

    Args:
        script: ``"translation"``, ``"summarization"``, ``"clm"`` or ``"sft"``.
        build: tokenizer -> model.
        words: makes the tokenizer.
        generation: what the checkpoint's ``generation_config`` has.
        lora: arguments of ``LoraConfig``; new tokens are then added to the tokenizer and the model.
        args: of the script: training arguments.
        like: the variant whose stock trainer it equals, where its own stock trainer miscounts; "": its own.
    """

    script: str
    build: Any
    words: Any = tokenizer
    generation: dict[str, Any] = field(default_factory=dict[str, Any])
    lora: dict[str, Any] | None = None
    args: dict[str, Any] = field(default_factory=dict[str, Any])
    like: str = ""

    def prepared(self) -> tuple[Any, Any]:
        """The tokenizer and the model, of the same weights each time."""
        transformers.set_seed(7)
        words = tokenizer("<s> $A") if self.script == "sft" else self.words()
        model = self.build(words)
        if self.lora is not None:
            known = len(words)
            words.add_tokens(["<new>", "<newer>"])
            model.resize_token_embeddings(len(words))
            new = {"trainable_token_indices": [known, known + 1]} if "modules_to_save" not in self.lora else {}
            # (TRL wraps the model itself)
            if self.script != "sft":
                model = get_peft_model(model, LoraConfig(r=2, lora_dropout=0.0, **{**new, **self.lora}))
        for name, value in self.generation.items():
            setattr(model.generation_config, name, words.convert_tokens_to_ids(value) if value == "fr_XX" else value)
        return words, model


_FORCED: Any = {"forced_bos_token_id": "fr_XX"}
_SETTINGS: Any = {"no_repeat_ngram_size": 2, "repetition_penalty": 1.3, "min_length": 3}
_LARGE_CNN: Any = {"num_beams": 2, "min_length": 4, "length_penalty": 2.0, "early_stopping": True, "max_length": 14,
                   "no_repeat_ngram_size": 3, "forced_bos_token_id": 2, "forced_eos_token_id": 1}  # fmt: skip
_QV: Any = {"target_modules": ["q", "v"]}
_PROJ: Any = {"target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
VARIANTS: dict[str, Variant] = {
    "translation t5": Variant("translation", t5),
    "translation t5 settings": Variant("translation", t5, generation=_SETTINGS),
    "translation t5 accumulated": Variant("translation", t5, args={"per_device_train_batch_size": 2,
                                                                   "gradient_accumulation_steps": 4},
                                         like="translation t5"),
    "translation t5 lora": Variant("translation", t5, lora=_QV),
    "translation t5 padded": Variant("translation", t5, args={"pad_to_max_length": True}),
    "translation marian": Variant("translation", bart_like("Marian", start=0), generation={"bad_words_ids": [[0]]}),
    "translation mbart": Variant("translation", bart_like("MBart", start=14),
                                 lambda: languages(transformers.MBartTokenizer)),
    "translation mbart50": Variant("translation", bart_like("MBart"),
                                   lambda: languages(transformers.MBart50Tokenizer), _FORCED),
    "translation m2m100": Variant("translation", bart_like("M2M100"),
                                  lambda: languages(transformers.MBart50Tokenizer), {**_FORCED, **_SETTINGS}),
    "summarization bart": Variant("summarization", bart_like("Bart"), framed),
    "summarization bart settings": Variant("summarization", bart_like("Bart"), framed, _LARGE_CNN),
    "summarization pegasus smoothed": Variant("summarization", bart_like("Pegasus", start=0),
                                              args={"label_smoothing_factor": 0.1}),
    "clm gpt2": Variant("clm", causal("GPT2")),
    "clm llama settings": Variant("clm", causal("Llama"), generation=_SETTINGS),
    "clm llama lora": Variant("clm", causal("Llama"), lora={**_PROJ, "modules_to_save": ["embed_tokens", "lm_head"]}),
    "clm gpt2 accumulated": Variant("clm", causal("GPT2"), args={"per_device_train_batch_size": 2,
                                                                 "gradient_accumulation_steps": 4}),
    "sft text": Variant("sft", causal("Llama"), args={"columns": "text"}),
    "sft completions": Variant("sft", causal("Llama"), generation=_SETTINGS),
    "sft chats": Variant("sft", causal("Llama"), args={"columns": "messages", "assistant_only_loss": True}),
    "sft packed": Variant("sft", causal("Llama"), args={"packing": True}),
    "sft packed wrapped": Variant("sft", causal("Llama"), args={"packing": True, "packing_strategy": "wrapped",
                                                                "columns": "text"}),
    "sft lora": Variant("sft", causal("Llama"), lora=_PROJ),
    "sft lora saved": Variant("sft", causal("Llama"), lora={**_PROJ, "modules_to_save": ["embed_tokens", "lm_head"]}),
    "sft dft": Variant("sft", causal("GPT2"), args={"loss_type": "dft"}),
}  # fmt: skip


def run(name: str, method: str, folder: Any = None, **changes: Any) -> Any:
    """A script with the stock trainer, or with ours and a method: its trainer; ``trainer.found`` has all metrics."""
    datasets.disable_progress_bars()
    variant = VARIANTS[name]
    settings = {**SETTINGS, "max_steps": 4, "output_dir": str(folder or tempfile.mkdtemp()), "bf16": False,
                CHECKPOINTING: False, "per_device_eval_batch_size": 4, **variant.args, **changes}  # fmt: skip
    options = {} if method == "stock" else {"method": METHODS[method]}
    script = {"translation": seq2seq, "summarization": seq2seq, "clm": clm, "sft": sft}[variant.script]
    trainer = script(variant, method == "stock", settings, options)
    trainer.remove_callback(transformers.PrinterCallback)
    if variant.script == "clm":
        trainer._loss_shifts_labels = True  # GPT-2's class has another name: the stock trainer counts a first token too
    trainer.train()
    trainer.save_model()
    trainer.found = trainer.evaluate()
    return trainer


def rows(number: int, seed: int, first: str, second: str) -> Any:
    return datasets.Dataset.from_list([{first: a, second: b} for a, b in texts(number, seed)])


def seq2seq(variant: Variant, stock: bool, settings: dict[str, Any], options: dict[str, Any]) -> Any:
    """Translation and summarisation: labels from the tokenizer, generation in evaluation, a score of texts."""
    words, model = variant.prepared()
    whole = settings.pop("pad_to_max_length", False)
    padding = "max_length" if whole else False
    prefix = "ab: " if variant.script == "summarization" else ""

    def tokenized(examples: dict[str, list[str]]) -> Any:
        inputs = [prefix + text for text in examples["source"]]
        found = words(inputs, max_length=16, padding=padding, truncation=True)
        labels = words(text_target=examples["target"], max_length=12, padding=padding, truncation=True)["input_ids"]
        if whole:
            labels = [[each if each != words.pad_token_id else -100 for each in row] for row in labels]
        return {**found, "labels": labels}

    def scores(predicted: Any) -> dict[str, float]:
        ids = numpy.where(predicted.predictions != -100, predicted.predictions, words.pad_token_id)
        gold = numpy.where(predicted.label_ids != -100, predicted.label_ids, words.pad_token_id)
        own, gold_texts = (words.batch_decode(part, skip_special_tokens=True) for part in (ids, gold))
        length = float(numpy.mean([numpy.count_nonzero(row != words.pad_token_id) for row in ids]))
        return {"chrf": sacrebleu.corpus_chrf(own, [gold_texts]).score, "gen_len": length}

    sets = [rows(number, seed, "source", "target").map(tokenized, batched=True, remove_columns=["source", "target"])
            for number, seed in ((32, 1), (7, 2))]  # fmt: skip
    length: Any = {} if "max_length" in variant.generation else {"generation_max_length": 12}
    args = transformers.Seq2SeqTrainingArguments(predict_with_generate=True, **length, **settings)
    collator = default_data_collator if whole else DataCollatorForSeq2Seq(words, model=model, label_pad_token_id=-100)
    return (transformers.Seq2SeqTrainer if stock else hf.Seq2SeqTrainer)(
        model=model, args=args, train_dataset=sets[0], eval_dataset=sets[1], processing_class=words,
        data_collator=collator, compute_metrics=scores, **options,
    )  # fmt: skip


def clm(variant: Variant, stock: bool, settings: dict[str, Any], options: dict[str, Any]) -> Any:
    """Texts one after the other in blocks of one length, all of it learnt; accuracy of the likeliest token."""
    words, model = variant.prepared()
    block = 16

    def grouped(examples: dict[str, list[Any]]) -> Any:
        joined = list(itertools.chain(*examples["input_ids"]))
        parts = [joined[i : i + block] for i in range(0, len(joined) // block * block, block)]
        return {"input_ids": parts, "attention_mask": [[1] * block] * len(parts), "labels": [list(p) for p in parts]}

    def scores(predicted: Any) -> dict[str, float]:
        # the tokens predicted, one position on
        return {"accuracy": float((predicted.predictions[:, :-1] == predicted.label_ids[:, 1:]).mean())}

    sets: list[Any] = []
    for number, seed in ((160, 1), (30, 2)):
        ids = rows(number, seed, "text", "rest").map(
            lambda e: words(e["text"]), batched=True, remove_columns=["text", "rest"]
        )
        sets.append(ids.map(grouped, batched=True, remove_columns=ids.column_names))
    return (transformers.Trainer if stock else hf.Trainer)(
        model=model, args=transformers.TrainingArguments(**settings), train_dataset=sets[0], eval_dataset=sets[1],
        processing_class=words, data_collator=default_data_collator, compute_metrics=scores,
        preprocess_logits_for_metrics=lambda logits, _: logits.argmax(-1), **options,
    )  # fmt: skip


class Supervised(hf.MethodMixin, trl.SFTTrainer):
    """The line that a user adds."""


TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '</s>' }}"
    "{% endgeneration %}{% else %}{{ m['content'] + ':' }}{% endif %}{% endfor %}"
)


def sft(variant: Variant, stock: bool, settings: dict[str, Any], options: dict[str, Any]) -> Any:
    """Texts, prompts with completions, or chats; TRL tokenises, masks and packs."""
    words, model = variant.prepared()
    columns = settings.pop("columns", "completions")
    words.chat_template = TEMPLATE if columns == "messages" else None

    def as_row(a: str, b: str) -> dict[str, Any]:
        if columns == "text":
            return {"text": f"{a}:{b}"}
        if columns == "completions":
            return {"prompt": f"{a}:", "completion": b}
        turns = [("user", a), ("assistant", b), ("user", b), ("assistant", a)]
        return {"messages": [{"role": role, "content": content} for role, content in turns]}

    sets = [datasets.Dataset.from_list([as_row(a, b) for a, b in texts(n, seed)]) for n, seed in ((32, 1), (7, 2))]
    if variant.lora is not None:
        new = {} if "modules_to_save" in variant.lora else {"trainable_token_indices": [len(words) - 2, len(words) - 1]}
        options = {**options, "peft_config": LoraConfig(r=2, lora_dropout=0.0, **{**new, **variant.lora})}
    return (trl.SFTTrainer if stock else Supervised)(
        model=model, args=trl.SFTConfig(max_length=24, **settings), train_dataset=sets[0], eval_dataset=sets[1],
        processing_class=words, **options,
    )  # fmt: skip


TWO = ("translation t5", "translation mbart50", "clm llama settings", "sft completions", "sft packed")


def main() -> None:
    """Run some scripts on two processes; the first leaves weights and log, and both have the same weights."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
    world = int(os.environ["WORLD_SIZE"])
    for name in TWO:
        for method in METHODS:
            sizes = {"per_device_train_batch_size": 8 // world, "per_device_eval_batch_size": 2}
            trainer = run(name, method, dataloader_drop_last=True, **sizes)
            mine = {key: value.detach().clone() for key, value in trainer.model.state_dict().items()}
            everyones: list[Any] = [None] * world
            torch.distributed.all_gather_object(everyones, mine)
            assert apart(everyones[0], everyones[1]) == 0.0, name
            if trainer.is_world_process_zero():
                kept = {"weights": mine, "log": trainer.state.log_history, "found": trainer.found}
                torch.save(kept, Path(sys.argv[1]) / f"{name} {method}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
