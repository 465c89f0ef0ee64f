"""BLEU by the words of each language: the tokenizer is chosen by the rows' language or the recipe, and printed."""

import sys
from pathlib import Path

import pytest
import sacrebleu

from builders import refused
from freerun.errors import UserError
from freerun.metrics.text import bleu_signature, score_texts, score_translations, tokenizer_of, unspaced

GOLD = ["我爱你们大家，真的。", "今天天气很好。", "the cat sat on the mat.", "猫は座る。"]
OWN = ["我爱他们大家，真的。", "今天天气不很好。", "the cat sat on a mat.", "猫が座る。"]


def test_each_language_has_its_tokenizer():
    names = {
        "zh": ["zh", "zh_CN", "zho_Hans", "zho_Hant", "__zh__", "<2zh>", "zh-TW", "Chinese", "yue_Hant"],
        "ja-mecab": ["ja", "ja_XX", "jpn_Jpan", "Japanese"], "ko-mecab": ["ko", "ko_KR", "kor_Hang"],
        "13a": ["", "de", "fr_XX", "eng_Latn", "th_TH", "zhuang"],
    }  # fmt: skip
    assert {name: tokenizer for tokenizer, each in names.items() for name in each} == {
        name: tokenizer_of(name) for each in names.values() for name in each
    }
    assert unspaced(GOLD[:2])
    assert unspaced(["猫は座る"])
    assert not unspaced([GOLD[2], "猫"])


@pytest.mark.parametrize("tokenize", ["zh", "13a", "char", "intl", "none"])
def test_scores_are_sacrebleus(tokenize):
    plain = sacrebleu.corpus_bleu(OWN, [GOLD], tokenize=tokenize, force=True)
    for scores, _ in (score_texts(OWN, GOLD, [tokenize] * 4), score_translations(OWN, GOLD, tokenize)):
        assert scores["bleu"] == pytest.approx(plain.score, abs=1e-12)
        assert scores["length_ratio"] == plain.sys_len / plain.ref_len
        assert scores["chrf"] == sacrebleu.corpus_chrf(OWN, [GOLD]).score
    # 0 by 13a, which sees one word a line
    assert (sacrebleu.corpus_bleu(OWN[:2], [GOLD[:2]], tokenize="13a").score < 10) == (
        score_texts(OWN[:2], GOLD[:2], ["13a"] * 2)[0]["bleu"] < 10
    )
    assert score_texts(OWN[:2], GOLD[:2], ["zh"] * 2)[0]["bleu"] > 40


def test_rows_of_several_languages_are_one_corpus():
    """Words counted by each row's own tokenizer: as sacreBLEU on text that was cut by them before."""
    by_row = ["zh", "zh", "13a", "char"]
    cut = {name: sacrebleu.metrics.BLEU(tokenize=name).tokenizer for name in by_row}
    own, gold = ([cut[name](text) for name, text in zip(by_row, texts, strict=True)] for texts in (OWN, GOLD))
    plain = sacrebleu.corpus_bleu(own, [gold], tokenize="none", force=True)
    assert score_texts(OWN, GOLD, by_row)[0]["bleu"] == pytest.approx(plain.score, abs=1e-12)
    assert "|tok:zh+13a+char|" in bleu_signature("zh", "13a", "char")
    assert "|tok:13a|" in bleu_signature("13a")


def test_a_library_that_is_absent_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "MeCab", None)
    for module in [name for name in sys.modules if "tokenizer_ja" in name or "tokenizer_ko" in name]:
        monkeypatch.delitem(sys.modules, module)
    message = r"BLEU by 'ja-mecab' needs .*: pip install 'sacrebleu\[ja\]', or set evaluate.bleu_tokenizer = \"char\""
    refused(message, bleu_signature, "ja-mecab")
    refused(message, score_texts, ["猫が座る。"], ["猫は座る。"], ["ja-mecab"])
    with pytest.raises(UserError, match=r"sacrebleu\[ko\]"):
        bleu_signature("ko-mecab")


CHINESE = [("a man runs.", "我爱你们大家。"), ("the dog sleeps.", "今天天气很好。")]


@pytest.mark.parametrize("named", [None, "zh", "char"])
def test_the_recipe_or_the_column_of_languages_chooses(named, tmp_path, capsys):
    import json

    from freerun.cli import main
    from huggingface_world import model_folder, write_lines, write_recipe

    capsys.readouterr()
    model = model_folder(tmp_path / "t5", "t5")
    data = write_lines(tmp_path / "x.jsonl", [{"source": a, "target": b} for a, b in CHINESE * 6])
    recipe = write_recipe(tmp_path, model, data) or Path(tmp_path / "tiny.toml")
    chosen = ["--set", f"evaluate.bleu_tokenizer={named}"] if named else []
    assert main(["train", str(recipe), "--set", "train.updates=1", *chosen, "--out", str(tmp_path / "run")]) == 0
    printed = " ".join(capsys.readouterr().err.split())
    assert f"|tok:{named or '13a'}|" in printed
    assert ("BLEU counts words between blanks, which the references lack" in printed) == (named is None)
    assert main(["evaluate", str(tmp_path / "run"), "--data", str(data)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert f"|tok:{named or '13a'}|" in found["bleu"]
    assert "chrf" in found["free_running"]
