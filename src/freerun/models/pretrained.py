"""Folders that transformers reads and writes: configuration, tokenizer and weights, and what is wrong with them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from freerun.errors import UserError, needing, out_of_memory

_ONE_FILE = "10TB"
"""Weights are saved in one file, as everywhere in a run's folder."""


@dataclass(frozen=True)
class Pretrained:
    """Any encoder-decoder or causal model over text of the library transformers, ``freerun.hf.adapt``.

    Args:
        path: a folder that ``save_pretrained`` wrote, such as the ``model`` folder of a run, or a name on the hub.
        tokenizer: another folder or name for the tokenizer (None: the model's own).
        random: fresh weights of the model's configuration instead of those saved.
        dtype: of the weights; "auto" is that in which they were saved.
        pad: the pad symbol, for a tokenizer that has none: "eos", or another symbol of it.
        chat_template: file of a chat template (Jinja) instead of the tokenizer's own.
    """

    kind: Literal["huggingface"] = "huggingface"
    path: str = ""
    tokenizer: str | None = None
    random: bool = False
    dtype: Literal["float32", "bfloat16", "auto"] = "float32"
    pad: str | None = None
    chat_template: str | None = None

    def __post_init__(self) -> None:
        if not self.path:
            raise UserError(
                "`path` is missing: the folder of a model, or its name on the hub"
                '\n  help: give it with --set model.path=FOLDER, or write path = "FOLDER" under [model]'
            )

    def __str__(self) -> str:
        return f"huggingface, {self.path}{', fresh weights' if self.random else ''}"


def read_config(path: str) -> Any:
    """The configuration of a model."""
    transformers = _transformers()
    _check_local(path, "config.json")
    return _taught(path, "model", lambda: transformers.AutoConfig.from_pretrained(_local(path)))


def read_tokenizer(settings: Pretrained, *, pads: bool = True) -> Any:
    """The tokenizer with the chat template of the settings, and with a pad symbol if it ``pads``."""
    transformers = _transformers()
    path = settings.tokenizer or settings.path
    files = ("tokenizer_config.json", "tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model")
    save = f"save the tokenizer there too, tokenizer.save_pretrained({path!r}), or name its folder: model.tokenizer"
    _check_local(path, *files, help_line=f"\n  help: {save}")
    tokenizer = _taught(path, "tokenizer", lambda: transformers.AutoTokenizer.from_pretrained(_local(path)))
    if settings.pad is not None:
        _set_pad(tokenizer, settings.pad, path)
    if pads and tokenizer.pad_token_id is None:
        end = "" if tokenizer.eos_token is None else f' pad = "eos" takes the end symbol {tokenizer.eos_token!r};'
        raise UserError(
            f"{path}: the tokenizer has no pad symbol, which fills rows up to one length\n  help: under [model],{end} "
            'pad = "SYMBOL" takes another one that it has; padding is never learned from'
        )
    if settings.chat_template is not None:
        try:
            tokenizer.chat_template = Path(settings.chat_template).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"chat_template = {settings.chat_template!r} cannot be read: {error}") from None
    return tokenizer


def _set_pad(tokenizer: Any, pad: str, path: str) -> None:
    if pad == "eos" and tokenizer.eos_token is None:
        raise UserError(f'{path}: pad = "eos", and the tokenizer has no end symbol; name another one that it has')
    symbol = tokenizer.eos_token if pad == "eos" else pad
    if symbol not in tokenizer.get_vocab():
        raise UserError(f"{path}: pad = {pad!r} is no symbol of the tokenizer, which has {len(tokenizer):,} others")
    tokenizer.pad_token = symbol


def read_model(settings: Pretrained, config: Any) -> Any:
    """The model with its language head, in training precision.

    Raises:
        UserError: it is of a kind that predicts no text, or weights are missing or damaged.
    """
    import torch

    transformers = _transformers()
    kind = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
    if type(config) not in kind._model_mapping:
        raise UserError(
            f"{settings.path}: a model of type {config.model_type!r} is no language model over text ({kind.__name__} "
            "does not know it); audio, pictures and encoders alone are out of scope here"
            "\n  help: see freerun.hf in Python"
        )
    dtype = settings.dtype if settings.dtype == "auto" else getattr(torch, settings.dtype)
    with quiet():
        if settings.random:
            options = {} if settings.dtype == "auto" else {"dtype": dtype}
            return _taught(settings.path, "model", lambda: kind.from_config(config, **options))
        model, loaded = _taught(
            settings.path,
            "model",
            lambda: kind.from_pretrained(_local(settings.path), config=config, dtype=dtype, output_loading_info=True),
        )
    missing = sorted(loaded["missing_keys"])
    if missing:
        raise UserError(
            f"{settings.path}: {len(missing)} of the model's weights are not there ({', '.join(missing[:3])}): what "
            f"was saved is no {type(model).__name__}"
            "\n  help: save the whole model, or set random = true for fresh weights"
        )
    return model


def model_positions(config: Any) -> int | None:
    """Positions that a model has; None: as many as one likes."""
    with needing("hf", "a model of kind huggingface"):
        from freerun.models.huggingface.model import configured_positions
    return configured_positions(config)


def end_ids(config: Any) -> tuple[int, ...]:
    """The ids that end a row by a generation configuration."""
    ends = getattr(config, "eos_token_id", None)
    return () if ends is None else (ends,) if isinstance(ends, int) else tuple(ends)


def declared_ends(path: str, config: Any) -> tuple[int, ...]:
    """The ids that end a row by a model's configuration and by its generation settings."""
    try:
        generation = _transformers().GenerationConfig.from_pretrained(_local(path))
    except OSError:  # it has none of its own
        generation = None
    own = end_ids(config.get_text_config(decoder=True))
    return tuple(dict.fromkeys((*own, *end_ids(generation))))


def saved_files(adapted: Any, weights: Mapping[str, Tensor], tokenizer: Any) -> dict[str, bytes]:
    """What ``save_pretrained`` writes of a model with some weights and of its tokenizer, file by file."""
    first: dict[int, str] = {}
    state: dict[str, Tensor] = {}
    for name, tensor in adapted.state_dict(keep_vars=True).items():
        state[name.removeprefix("model.")] = weights[first.setdefault(id(tensor), name)]
    with tempfile.TemporaryDirectory(prefix="freerun-") as folder, quiet():
        adapted.inner.save_pretrained(folder, state_dict=state, max_shard_size=_ONE_FILE)
        tokenizer.save_pretrained(folder)
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir()) if path.is_file()}


def saved_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of a saved model under the names that they have in an adapted one, tied ones once."""
    settings = Pretrained(path=str(folder), dtype="auto")
    seen: dict[int, str] = {}
    state: dict[str, Tensor] = read_model(settings, read_config(settings.path)).state_dict(keep_vars=True)
    return {f"model.{name}": t.detach() for name, t in state.items() if seen.setdefault(id(t), name) == name}


def _transformers() -> Any:
    with needing("hf", "a model of kind huggingface"):
        import transformers
    return transformers


def _local(path: str) -> str:
    local = Path(path).expanduser()
    return str(local) if local.exists() else path


def _check_local(path: str, *files: str, help_line: str = "") -> None:
    """Refuse what is meant as a folder and is none, before it is taken for a name on the hub."""
    local = Path(path).expanduser()
    if local.is_dir() and not any((local / name).exists() for name in files):
        held = ", ".join(sorted(entry.name for entry in local.iterdir())[:8]) or "nothing"
        runs = f"; of a run of freerun give {local / 'model'}" if (local / "model").is_dir() else ""
        if (local / "adapter_config.json").exists():
            help_line = "\n  help: these are weights of an adapter: save the whole model, model.merge_and_unload()"
        raise UserError(f"{path}: holds none of {', '.join(files)}; it holds {held}{runs}{help_line}")
    if local.is_file():
        raise UserError(f"{path}: is a file; give the folder that save_pretrained wrote")
    if not local.exists() and (path.startswith((".", "/", "~")) or path.count("/") > 1):
        raise UserError(f"{path}: there is no such folder")


def _taught(path: str, what: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except Exception as error:  # whatever a damaged file makes a reader of it raise
        if out_of_memory(error):
            raise
        reason = " ".join((str(error).strip() or type(error).__name__).split())[:300]
        hub = (
            "" if Path(path).expanduser().exists() else
            f"\n  help: {path!r} is no folder here, so it was taken for a name on the Hugging Face hub; without a "
            "connection give a folder that save_pretrained wrote"
        )  # fmt: skip
        raise UserError(f"{path}: the {what} cannot be loaded: {reason}{hub}") from None


@contextmanager
def quiet() -> Generator[None]:
    """Without the library's progress bars, and its notes on what it loads."""
    logging = _transformers().utils.logging
    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
