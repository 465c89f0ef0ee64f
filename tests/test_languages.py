"""A multilingual model is trained, scored and run freely in the language of each row, by the command alone."""

import json
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import transformers
from transformers.utils import logging

from freerun.cli import main
from freerun.recipes.load import load_run, own_data

WORDS = ["one", "two", "three", "four", "five", "six"]
SPOKEN = {
    "fr": ["un", "deux", "trois", "quatre", "cinq", "six"],
    "de": ["eins", "zwei", "drei", "vier", "fünf", "sechs"],
}


def records(name: str = "{}") -> list[dict[str, str]]:
    made: list[dict[str, str]] = []
    for a in range(6):
        for b in range(6):
            for language, words in SPOKEN.items():
                source, target = f"{WORDS[a]} {WORDS[b]}", f"{words[a]} {words[b]}"
                made.append({"source": source, "target": target, "lang": name.format(language)})
    return made


def words_tokenizer(special: list[str]) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    made = Tokenizer(models.WordLevel(unk_token="<unk>"))  # pyright: ignore[reportCallIssue]
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.WordLevelTrainer(special_tokens=["<pad>", "</s>", "<unk>", *special], show_progress=False)  # pyright: ignore[reportCallIssue]
    made.train_from_iterator([" ".join(words) for words in (WORDS, *SPOKEN.values())], trainer)
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])  # pyright: ignore
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="</s>", pad_token="<pad>", unk_token="<unk>", additional_special_tokens=special
    )


class Unigram:
    """The vocabulary of an mBART-like tokenizer of transformers: whole words."""

    words = sorted({word for words in (WORDS, *SPOKEN.values()) for word in words})
    vocab: ClassVar[list[tuple[str, float]]] = [
        ("<s>", 0.0),
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        ("▁", -9.0),
        *((f"▁{w}", -2.0) for w in words),
    ]


_SIDES = {
    f"{side}_{name}": size
    for side in ("encoder", "decoder")
    for name, size in {"layers": 1, "attention_heads": 2, "ffn_dim": 64}.items()
}


def folder_of(root: Path, kind: str) -> tuple[Path, str]:
    """A random model of a kind with its tokenizer, and how it writes a language."""
    logging.disable_progress_bar()
    torch.manual_seed(0)
    sizes = {"d_model": 32, "max_position_embeddings": 32, "dropout": 0.0, "attention_dropout": 0.0, **_SIDES}
    if kind == "m2m_100":
        tokenizer, name = words_tokenizer(["__fr__", "__de__"]), "{}"
        ends = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1, "decoder_start_token_id": 1}
        config: Any = transformers.M2M100Config(vocab_size=len(tokenizer), **ends, **sizes, encoder_layerdrop=0.0,
                                                decoder_layerdrop=0.0)  # fmt: skip
    else:
        cls = {"mbart": transformers.MBartTokenizer, "mbart50": transformers.MBart50Tokenizer}[kind]
        tokenizer, name = cls(vocab=Unigram.vocab, src_lang="en_XX", tgt_lang="fr_XX"), "{}_" + "XX"
        ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id,
                "bos_token_id": tokenizer.bos_token_id}  # fmt: skip
        config = transformers.MBartConfig(vocab_size=len(tokenizer), **ends, **sizes, forced_eos_token_id=None)
        if kind == "mbart50":
            config.decoder_start_token_id = tokenizer.eos_token_id
    model = transformers.AutoModelForSeq2SeqLM.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4 if weight.dim() == 2 else 1)
    model.save_pretrained(root)
    tokenizer.save_pretrained(root)
    return root, name


@pytest.mark.slow  # three models of 200 updates, half a minute
@pytest.mark.parametrize("kind", ["m2m_100", "mbart", "mbart50"])
def test_each_row_is_trained_scored_and_run_freely_in_its_language(kind, tmp_path, capsys):
    folder, name = folder_of(tmp_path / "model", kind)
    if kind != "m2m_100":
        name = {"fr": "fr_XX", "de": "de_DE"}
    rows = [dict(row, lang=name[row["lang"]] if isinstance(name, dict) else row["lang"]) for row in records()]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    sets = {
        "data.path": data, "data.language_column": "lang", "model.path": folder, "train.updates": 200,
        "train.batch_size": 16,
        "train.accumulate": 1, "train.threads": 1, "train.lr": 0.01, "train.warmup": 0, "train.evaluate_every": 200,
        "train.save_every": 200, "data.test": 0.2, "data.dev": 0.1,
    }  # fmt: skip
    flags = [word for key, value in sets.items() for word in ("--set", f"{key}={value}")]
    run = tmp_path / "run"
    assert main(["train", "finetune-pairs", *flags, "--out", str(run)]) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["test"]["free_running"]["sequence_accuracy"] >= 70
    loaded = load_run(run)
    held, encoded = own_data(loaded).evaluation("test")
    assert {record.language for record in held} == {row["lang"] for row in rows}
    batch = loaded.codec.training_batch(encoded)
    ids = [
        loaded.codec.tokenizer.convert_tokens_to_ids(f"__{r.language}__" if kind == "m2m_100" else r.language)
        for r in held
    ]
    if kind == "mbart":
        assert batch.context.first[:, 0].tolist() == ids
    else:
        assert batch.history[:, 0].tolist() == ids
        assert not bool(batch.replaceable[:, 0].any())
        assert bool(batch.mask[:, 0].all())
        assert not bool(loaded.codec.answer_batch(encoded).mask[:, 0].any())
    capsys.readouterr()
    asked_for = [{"source": "two five", "lang": lang} for lang in dict.fromkeys(row["lang"] for row in rows)]
    lines = tmp_path / "in.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in asked_for))
    assert main(["generate", str(run), "--input", str(lines)]) == 0
    outputs = [json.loads(line)["output"] for line in capsys.readouterr().out.splitlines()]
    assert outputs == ["deux cinq", "zwei fünf"]
    lines.write_text("two five\n")
    assert main(["generate", str(run), "--input", str(lines)]) != 0
    assert "the language of each line is needed" in " ".join(capsys.readouterr().err.split())
    assert main(["evaluate", str(run), "--data", str(data)]) == 0
    assert json.loads(capsys.readouterr().out)["free_running"]["sequence_accuracy"] >= 70
    # a plain model of transformers, made to begin with each row's language, outputs the same
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(run / "model").eval()
    source = loaded.codec.prompts(["two five"])
    for language, expected in zip(dict.fromkeys(ids), ["deux cinq", "zwei fünf"], strict=False):
        begin = {"decoder_start_token_id" if kind == "mbart" else "forced_bos_token_id": language}
        found = model.generate(torch.tensor(source), **begin, max_new_tokens=6, do_sample=False)[0]
        text = loaded.codec.tokenizer.decode(found, skip_special_tokens=True).strip()
        assert text in ("deux cinq", "zwei fünf"), expected


def test_bleu_counts_the_words_of_each_rows_language(tmp_path, capsys, monkeypatch):
    folder, _ = folder_of(tmp_path / "model", "mbart50")
    data = tmp_path / "data.jsonl"

    def trained(other):
        rows = [{**row, "lang": other if row["lang"] == "fr" else "de_DE"} for row in records()]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        sets = {"data.path": data, "data.language_column": "lang", "model.path": folder, "train.updates": 2,
                "train.warmup": 0, "train.evaluate_every": 2, "train.save_every": 2, "train.accumulate": 1,
                "data.test": 0.2, "data.dev": 0.1}  # fmt: skip
        flags = [word for key, value in sets.items() for word in ("--set", f"{key}={value}")]
        code = main(["train", "finetune-pairs", *flags, "--out", str(tmp_path / other)])
        return code, " ".join(capsys.readouterr().err.split())

    code, printed = trained("zh_CN")
    assert code == 0, printed
    assert "|tok:13a+zh|" in printed
    assert main(["evaluate", str(tmp_path / "zh_CN"), "--data", str(data)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "|tok:13a+zh|" in found["bleu"]
    assert "chrf" in found["free_running"]
    # where the library of a language is absent, it is named before the first step
    monkeypatch.setitem(sys.modules, "MeCab", None)
    code, printed = trained("ja_XX")
    assert code == 2
    assert "pip install 'sacrebleu[ja]'" in printed
    assert not (tmp_path / "ja_XX").exists()


def test_languages_that_nobody_knows_are_refused_by_line(tmp_path, capsys):
    folder, _ = folder_of(tmp_path / "model", "m2m_100")
    rows = [
        *records()[:6],
        {"source": "one", "target": "uno", "lang": "es"},
        {"source": "one", "target": "un", "lang": ""},
    ]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    sets = ["--set", f"data.path={data}", "--set", f"model.path={folder}", "--set", "data.empty=error"]
    assert (
        main(["train", "finetune-pairs", *sets, "--set", "data.language_column=lang", "--out", str(tmp_path / "run")])
        != 0
    )
    printed = " ".join(capsys.readouterr().err.split())
    assert "data.jsonl:7: 'es' is no language of the tokenizer" in printed
    assert "data.jsonl:8: column 'lang' is empty" in printed
    assert (
        main(["train", "finetune-pairs", *sets, "--set", "data.language_column=tongue", "--out", str(tmp_path / "run")])
        != 0
    )
    assert "has no column 'tongue'" in " ".join(capsys.readouterr().err.split())
