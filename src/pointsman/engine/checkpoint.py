"""The files of a checkpoint: which is missing or damaged, found without reading a tensor or running anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pointsman.errors import ModelError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_TOKENIZER_JSON = (
    *("tokenizer_config.json", "tokenizer.json", "special_tokens_map.json", "added_tokens.json"),
    "vocab.json",
)
_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "tekken.json")
_AGAIN = "Download or save the checkpoint again"


def refuse_damaged_weights(folder: Path, model: str) -> None:
    """Raise unless the weights that transformers would read are safetensors, are all there and are whole.

    Only the headers of the files are read.

    Args:
        folder: Of the checkpoint.
        model: What messages call the model.

    Raises:
        ModelError: A file is missing or damaged, or the weights are pickles, which may run code when they are read.
    """
    if (folder / WEIGHTS).exists():
        _tensors(folder / WEIGHTS)
        return
    if not (folder / INDEX).exists():
        raise no_safetensors(model, sorted(f.name for f in folder.iterdir() if f.suffix.lower() in _PICKLES))
    for shard in _shards(folder / INDEX):
        file = folder / shard
        if not file.exists():
            raise ModelError(f"{file} is missing: {folder / INDEX} names it", _AGAIN)
        _tensors(file)


def refuse_incomplete_shards(folder: Path) -> None:
    """Raise if an index names a tensor that its shard lacks. That is only wrong where the model needs the tensor.

    Raises:
        ModelError: It does.
    """
    if (folder / WEIGHTS).exists() or not (folder / INDEX).exists():
        return
    for shard, names in _shards(folder / INDEX).items():
        file = folder / shard
        absent = names - _tensors(file)
        if absent:
            raise ModelError(f"{file} lacks the tensor {min(absent)} that {folder / INDEX} says it has", _AGAIN)


def refuse_unread_settings(folder: Path) -> None:
    """Raise if generation settings are not JSON: transformers would leave them out in silence.

    Also where no answer could end, because the token that ends it is none.
    """
    for name in ("generation_config.json", "config.json"):
        if not (folder / name).exists():
            continue
        ends = read_json(folder / name).get("eos_token_id")
        if ends is None:
            continue
        if not all(type(end) is int for end in (ends if isinstance(ends, list) else [ends])):
            raise ModelError(
                f"{folder / name} says that answers end at the token {ends!r:.40} (eos_token_id)",
                "Write a token id there, a list of them, or null",
            )
        return  # what the second says is not used


def refuse_damaged_tokenizer(folder: Path) -> None:
    """Raise if a JSON file of a tokenizer cannot be read."""
    for name in _TOKENIZER_JSON:
        if (folder / name).exists():
            read_json(folder / name)


def refuse_unread_tokenizer(folder: Path) -> None:
    """Raise where the files say why a tokenizer could not be made of them."""
    refuse_damaged_tokenizer(folder)
    vocabulary = folder / "tokenizer.json"
    if not any(f.name in _VOCABULARIES or f.suffix in (".model", ".tiktoken") for f in folder.iterdir()):
        raise ModelError(f"{vocabulary} is missing, and there is no other vocabulary beside it", _AGAIN)
    if vocabulary.exists():
        from tokenizers import Tokenizer

        try:
            Tokenizer.from_file(str(vocabulary))
        except Exception as error:  # tokenizers raises nothing more special
            raise ModelError(f"{vocabulary} is damaged ({' '.join(str(error).split())[:120]})", _AGAIN) from None


def refuse_other_tokenizer(folder: Path, tokenizer: Any) -> None:
    """Raise if a tokenizer is not the one of the folder.

    Without its settings transformers builds one of the kind that is usual for the model, out of the same vocabulary;
    without a vocabulary, an empty one.
    """
    probe = "How do I mend the red badint ?"
    ids = list(tokenizer(probe, add_special_tokens=False)["input_ids"])
    settings, vocabulary = folder / "tokenizer_config.json", folder / "tokenizer.json"
    if not ids:
        missing = "" if vocabulary.exists() else f": {vocabulary} is missing"
        raise ModelError(f"The tokenizer of {folder} knows no words{missing}", _AGAIN)
    if settings.exists() or not vocabulary.exists():
        return
    from tokenizers import Tokenizer

    if Tokenizer.from_file(str(vocabulary)).encode(probe, add_special_tokens=False).ids != ids:
        raise ModelError(f"{settings} is missing, and without it the text would be cut into other tokens", _AGAIN)


def no_safetensors(model: str, pickles: list[str]) -> ModelError:
    """The error for a checkpoint without safetensors."""
    if not pickles:
        return ModelError(
            f"{model} has no weights in safetensors: there is neither {WEIGHTS} nor {INDEX}",
            "Give a complete causal-LM checkpoint, as save_pretrained writes it",
        )
    return ModelError(
        f"{model} has only pickled weights ({pickles[0]}), and reading a pickle can run what is in it",
        "Give a checkpoint with .safetensors files; transformers' save_pretrained writes them",
    )


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ModelError: The file holds something else, or cannot be read.
    """
    try:
        text = file.read_text(encoding="utf-8")
        if text.startswith("\ufeff"):
            raise ModelError(
                f"{file} begins with a byte order mark, and transformers does not read it so",
                "Save it again as UTF-8 without one",
            )
        found = json.loads(text)
    except OSError as error:
        raise ModelError(f"{file} cannot be read ({error.strerror})", "Check its permissions") from None
    except (ValueError, RecursionError):
        raise ModelError(f"{file} is damaged: it is not JSON", _AGAIN) from None
    if not isinstance(found, dict):
        raise ModelError(f"{file} is damaged: it holds no table of keys and values", _AGAIN)
    return found


def _shards(index: Path) -> dict[str, set[str]]:
    """The names of the tensors of every file that an index names."""
    table = read_json(index).get("weight_map")
    if not isinstance(table, dict) or not table or not all(isinstance(f, str) for f in table.values()):
        raise ModelError(f"{index} is damaged: its weight_map names no files", _AGAIN)
    shards: dict[str, set[str]] = {}
    for tensor, shard in table.items():
        shards.setdefault(shard, set()).add(tensor)
    return dict(sorted(shards.items()))


def _tensors(file: Path) -> set[str]:
    """The names of the tensors in a safetensors file whose header fits its length."""
    from safetensors import SafetensorError, safe_open

    if not file.is_file():  # a pipe would never end
        raise ModelError(f"{file} is not a file", _AGAIN)
    try:
        with safe_open(str(file), framework="pt") as opened:
            return set(opened.keys())
    except OSError as error:
        raise ModelError(f"{file} cannot be read ({error.strerror or error})", "Check its permissions") from None
    except SafetensorError as error:
        raise ModelError(f"{file} is damaged or not complete ({' '.join(str(error).split())[:120]})", _AGAIN) from None
