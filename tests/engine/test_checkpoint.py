"""Checkpoints that somebody else wrote: no code of theirs runs, and what is wrong with them is told by file name."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPConfig,
    LlamaConfig,
    LlamaForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    T5Config,
)

import pointsman
from families.tiny import tiny
from pointsman.errors import ModelError, NoRouters, PointsmanError, UncontrollableRouter
from pointsman.testbed.tokenizer import CONTEXT, build_tokenizer

SMALL = dict(
    hidden_size=32, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
    max_position_embeddings=CONTEXT, pad_token_id=0, bos_token_id=None, eos_token_id=2,
)  # fmt: skip
MODEL, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "whole"
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    config = OlmoeConfig(vocab_size=len(tokenizer), num_experts=8, num_experts_per_tok=2, **SMALL)
    OlmoeForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def refused(folder: Path, *words: str, error: type[PointsmanError] = ModelError, **options: Any) -> str:
    with pytest.raises(error) as caught:
        pointsman.load(str(folder), device="cpu", **options)
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.remedy
    for word in words:
        assert word in message
    return message


def rewrite(file: Path, **changes: Any) -> None:
    data = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in data.items() if v is not None}))


def shard(folder: Path) -> tuple[Path, Path]:
    """The same weights in two files and an index."""
    weights = load_file(folder / MODEL)
    (folder / MODEL).unlink()
    files = folder / "model-00001-of-00002.safetensors", folder / "model-00002-of-00002.safetensors"
    halves = [{n: w for n, w in weights.items() if ("layers.0" in n) == first} for first in (True, False)]
    for file, half in zip(files, halves, strict=True):
        save_file(half, file, {"format": "pt"})
    table = {n: file.name for file, half in zip(files, halves, strict=True) for n in half}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": table}))
    return files


# ---------------------------------------------------------------------- pickles


class _Touch:
    """What a hostile pickle does, only harmless."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("hostile", [False, True])
def test_pickled_weights_are_refused_and_never_read(copy: Path, tmp_path: Path, hostile: bool) -> None:
    marker = tmp_path / "it-ran"
    torch.save(_Touch(marker) if hostile else load_file(copy / MODEL), copy / "pytorch_model.bin")
    pointsman.load(str(copy), device="cpu")
    (copy / MODEL).unlink()
    message = refused(copy, "pytorch_model.bin", "pickle", ".safetensors")
    assert "weights_only" not in message
    assert not marker.exists()


@pytest.mark.parametrize("named", ["adapter_model.bin", "weights.bin"])
def test_a_configuration_cannot_ask_for_pickled_weights(copy: Path, tmp_path: Path, named: str) -> None:
    marker = tmp_path / "it-ran"
    torch.save(_Touch(marker), copy / named)
    rewrite(copy / "config.json", transformers_weights=named)
    refused(copy, named, "pickle")
    assert not marker.exists()


def test_a_pickle_under_the_name_of_safetensors_is_damaged(copy: Path, tmp_path: Path) -> None:
    marker = tmp_path / "it-ran"
    torch.save(_Touch(marker), copy / MODEL)
    refused(copy, str(copy / MODEL), "damaged")
    assert not marker.exists()


# ---------------------------------------------------------------------- damaged files


def test_truncated_weights(copy: Path) -> None:
    raw = (copy / MODEL).read_bytes()
    for part in (raw[: len(raw) // 2], raw[:20], b"", b"\xff" * 100):
        (copy / MODEL).write_bytes(part)
        refused(copy, f"{copy / MODEL} is damaged or not complete")


def test_shards(copy: Path) -> None:
    first, second = shard(copy)
    pointsman.load(str(copy), device="cpu")
    raw = second.read_bytes()
    second.write_bytes(raw[:-4])
    refused(copy, f"{second} is damaged or not complete")
    shutil.copy(first, second)
    refused(copy, f"{second} lacks the tensor lm_head.weight", INDEX)
    second.unlink()
    refused(copy, f"{second} is missing", INDEX)


@pytest.mark.parametrize("name", ["model.layers.61.eh_proj.weight", "lm_head.weight"])
def test_an_index_may_name_a_tensor_that_nobody_needs(copy: Path, name: str) -> None:
    """Such as a stale one, or the head of a model that shares it with its embedding."""
    weights = load_file(copy / MODEL)
    if name in weights:
        rewrite(copy / "config.json", tie_word_embeddings=True)
        del weights[name]
        save_file(weights, copy / MODEL, {"format": "pt"})
    first, _ = shard(copy)
    table = json.loads((copy / INDEX).read_text())
    table["weight_map"][name] = first.name
    (copy / INDEX).write_text(json.dumps(table))
    pointsman.load(str(copy), device="cpu")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}', "\xff"])
def test_a_damaged_index(copy: Path, text: str) -> None:
    shard(copy)
    (copy / INDEX).write_bytes(text.encode("latin-1"))
    refused(copy, f"{copy / INDEX} is damaged")


def test_no_weights(copy: Path) -> None:
    (copy / MODEL).unlink()
    refused(copy, "no weights", MODEL)


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
)  # fmt: skip
@pytest.mark.parametrize("text", ["{", "[]", "\xff"])
def test_a_file_that_is_not_json(copy: Path, name: str, text: str) -> None:
    (copy / name).write_bytes(text.encode("latin-1"))
    refused(copy, f"{copy / name} is damaged")


def test_a_tokenizer_file_of_another_kind(copy: Path) -> None:
    (copy / "tokenizer.json").write_text("{}")
    refused(copy, f"{copy / 'tokenizer.json'} is damaged")


@pytest.mark.parametrize(
    "missing", [("tokenizer.json",), ("tokenizer_config.json",), ("tokenizer.json", "tokenizer_config.json")]
)
def test_a_missing_tokenizer_file(copy: Path, missing: tuple[str, ...]) -> None:
    """Without the last two transformers builds another tokenizer, or an empty one, and says nothing."""
    for name in missing:
        (copy / name).unlink()
    refused(copy, f"{copy / missing[0]} is missing")


def test_weights_that_the_checkpoint_lacks_are_not_drawn_at_random(copy: Path) -> None:
    weights = load_file(copy / MODEL)
    name = "model.layers.1.self_attn.q_proj.weight"
    save_file({n: w for n, w in weights.items() if n != name}, copy / MODEL, {"format": "pt"})
    refused(copy, f"lacks weights that its config.json asks: {name}.")
    save_file({**weights, name: weights[name][:4].clone()}, copy / MODEL, {"format": "pt"})
    refused(copy, f"holds {name} of shape 4 x 32, and its config.json asks 32 x 32")


@pytest.mark.parametrize("family", ["deepseek_v3", "glm4_moe", "dots1", "minimax_m2", "ernie4_5_moe"])
def test_a_bias_that_corrects_the_choice_of_experts_is_not_taken_for_zero(family: str, tmp_path: Path) -> None:
    """In most of these it is a buffer, and not a parameter."""
    tokenizer = build_tokenizer()
    tiny(family, vocab_size=len(tokenizer), max_position_embeddings=CONTEXT).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert pointsman.load(str(tmp_path), device="cpu").info.extra["notes"] == []
    weights = load_file(tmp_path / MODEL)
    kept = {n: w for n, w in weights.items() if not n.endswith("e_score_correction_bias")}
    assert len(kept) < len(weights)
    save_file(kept, tmp_path / MODEL, {"format": "pt"})
    refused(tmp_path, "lacks weights that its config.json asks", "e_score_correction_bias")


# ---------------------------------------------------------------------- what is not used


def notes(folder: Path) -> list[str]:
    found: list[str] = pointsman.load(str(folder), device="cpu").info.extra["notes"]
    return found


def add(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file({**load_file(folder / MODEL), **tensors}, folder / MODEL, {"format": "pt"})


def test_layers_that_the_configuration_does_not_count_are_noted(copy: Path) -> None:
    assert notes(copy) == []
    rewrite(copy / "config.json", num_hidden_layers=1)
    (note,) = notes(copy)
    assert "tensors of the checkpoint are not used, such as model.layers.1.input_layernorm.weight: " in note
    assert note.endswith("its configuration counts 1 layers")
    rewrite(copy / "config.json", num_nextn_predict_layers=1)
    assert notes(copy) == [note], "an ordinary layer is none that predicts further tokens"


def test_layers_that_predict_further_tokens_are_as_they_should_be(copy: Path) -> None:
    weights = load_file(copy / MODEL)
    further = {n.replace(".1.", ".2."): w.clone() for n, w in weights.items() if n.startswith("model.layers.1.")}
    add(copy, {**further, "model.layers.2.eh_proj.weight": torch.zeros(2, 2)})
    assert len(notes(copy)) == 1
    rewrite(copy / "config.json", num_nextn_predict_layers=1)
    assert notes(copy) == []


def test_a_bias_that_the_configuration_leaves_out_is_noted(copy: Path) -> None:
    add(copy, {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4), "other.weight": torch.zeros(4)})
    assert notes(copy) == []
    add(copy, {"model.layers.0.self_attn.q_proj.bias": torch.ones(32)})
    assert notes(copy) == [
        "1 tensor of the checkpoint is not used, such as model.layers.0.self_attn.q_proj.bias: its configuration asks "
        "for no such part of that module"
    ]


# ---------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json", "index"]
)
def test_a_byte_order_mark_is_named_where_transformers_does_not_read_it(copy: Path, name: str) -> None:
    if name == "index":
        shard(copy)
    file = copy / (INDEX if name == "index" else name)
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    refused(copy, f"{file} begins with a byte order mark", "without one")


@pytest.mark.parametrize("end", ["x", ["x"], [2, None], True, {}], ids=repr)
def test_the_end_of_an_answer_must_be_a_token(copy: Path, end: Any) -> None:
    rewrite(copy / "generation_config.json", eos_token_id=end)
    refused(copy, f"{copy / 'generation_config.json'} says that answers end at the token {end!r} (eos_token_id)")
    (copy / "generation_config.json").unlink()
    rewrite(copy / "config.json", eos_token_id=end)
    refused(copy, "config.json", "eos_token_id", repr(end))


def test_the_end_of_an_answer_may_be_several_tokens_or_none(copy: Path) -> None:
    for end in ([2, 3], 2, None):
        rewrite(copy / "generation_config.json", eos_token_id=end)
        pointsman.load(str(copy), device="cpu")


def test_the_template_of_a_processor_is_read_where_there_is_no_other(copy: Path) -> None:
    file, own = copy / "chat_template.json", copy / "chat_template.jinja"
    file.write_text("not JSON")
    usual = pointsman.load(str(copy), device="cpu").encode("the red badint ?")  # nobody asks for it
    file.write_text(json.dumps({"chat_template": own.read_text()}))
    own.unlink()
    engine = pointsman.load(str(copy), device="cpu")
    assert engine.encode("the red badint ?") == usual
    assert ["chat_template.json" in note for note in engine.info.extra["notes"]] == [True]
    for text, words in (("{", "is damaged"), ("{}", "holds no text under chat_template")):
        file.write_text(text)
        refused(copy, f"{file} {words}")


def test_a_tokenizer_that_knows_more_than_the_model(copy: Path) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(copy)
    tokenizer.add_tokens(["badintest"])
    tokenizer.save_pretrained(copy)
    engine = pointsman.load(str(copy), device="cpu")
    engine.encode("the red badint ?")
    with pytest.raises(ModelError, match="knows more tokens than the model"):
        engine.encode("badintest")


# ---------------------------------------------------------------------- before the weights


@pytest.fixture
def without_weights(copy: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint whose weights are a pipe that would be waited for; nobody may ask for them either."""
    (copy / MODEL).unlink()
    os.mkfifo(copy / MODEL)

    def asked(*_: Any, **__: Any) -> None:
        raise AssertionError("the weights were asked for")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", asked)
    return copy


def configured(config: Any) -> Callable[[Path], None]:
    return lambda folder: config.save_pretrained(folder)


def untemplated(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()


def malformed(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{% for m in messages %}")


@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        (configured(LlamaConfig(vocab_size=252, **SMALL)), NoRouters, ("LlamaForCausalLM is a dense model",)),
        (configured(T5Config()), UncontrollableRouter, ("encoder-decoder",)),
        (configured(CLIPConfig()), ModelError, ("no causal language model (CLIPConfig)",)),
        (lambda f: rewrite(f / "config.json", model_type="nonesuch"), ModelError, ("model type", "Upgrade")),
        (lambda f: rewrite(f / "config.json", model_type=None), ModelError, ("model_type",)),
        (lambda f: rewrite(f / "config.json", hidden_size="big"), ModelError, ("hidden_size",)),
        (
            lambda f: rewrite(f / "config.json", quantization_config={"quant_method": "magic"}),
            ModelError,
            ("quantized by magic",),
        ),
        (untemplated, ModelError, ("no chat template", "--chat-template FILE")),
        (malformed, ModelError, ("The chat template",)),
        (lambda f: (f / "tokenizer.json").unlink(), ModelError, ("tokenizer.json is missing",)),
        (lambda f: None, ModelError, (f"{MODEL} is not a file",)),
    ],
)  # fmt: skip
def test_what_can_be_refused_without_the_weights_is(
    without_weights: Path, spoil: Callable[[Path], None], error: type[PointsmanError], words: tuple[str, ...]
) -> None:
    spoil(without_weights)
    refused(without_weights, *words, error=error)


def test_a_template_that_is_given_stands_for_one_that_is_missing(copy: Path, tmp_path: Path) -> None:
    template = tmp_path / "own.jinja"
    shutil.move(copy / "chat_template.jinja", template)
    assert len(pointsman.load(str(copy), device="cpu", chat_template=template).encode("the red badint ?"))
    for raw, words in ((b"\xff", "not UTF-8"), (b"", "no chat template"), (b"{% if %}", "The chat template")):
        template.write_bytes(raw)
        refused(copy, words, chat_template=template)


def test_a_dense_model_is_dense_with_its_weights_too(tmp_path: Path) -> None:
    """The refusal before the weights is the one that the loaded model would get."""
    tokenizer = build_tokenizer()
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **SMALL))
    with pytest.raises(NoRouters) as caught:
        pointsman.find_routers(model)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert refused(tmp_path, error=NoRouters) == str(caught.value)
