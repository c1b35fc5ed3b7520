"""Each model of the papers, tiny and with its chat template: loaded, talked to, judged, steered, attacked, folded."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from datetime import date
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

import pointsman
from families.papers import (
    ANSWER,
    BEHAVIOUR,
    PAPERS,
    Walked,
    checkpoint_of,
    code_kept_in,
    engine_of,
    paper,
    walk,
)
from pointsman.engine.hf import HFEngine
from pointsman.engine.learning import Lesson
from pointsman.engine.old_code import causal_mask, old_names
from pointsman.errors import ModelError
from pointsman.jobs.steer.candidates import DECISION, _begun
from pointsman.jobs.steer.lessons import Lessons
from pointsman.methods.rosais import RoSais, to_first_token
from pointsman.runs.bench import THOUGHT, Bench
from pointsman.runs.results import ModelFacts

# The code that comes with deepseek-moe-16b says `past_key_values`, as such code does; it is not ours to change.
pytestmark = [
    pytest.mark.versions,
    pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`rope_scaling` is deprecated:FutureWarning"),
    pytest.mark.outdated(
        "^transformers.utils.generic: `past_key_values`/`cache_params` are deprecated",
        "^transformers.configuration_utils: `use_return_dict` is deprecated",
    ),
]


def _script() -> Any:
    path = Path(__file__).resolve().parents[2] / "scripts" / "papers.py"
    spec = importlib.util.spec_from_file_location("models_of_the_papers", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["models_of_the_papers"] = module
    spec.loader.exec_module(module)
    return module


script = _script()
SAME_VERSION = script.version() == transformers.__version__


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for the checkpoints of this module, and for the copies that transformers makes of code."""
    folder = tmp_path_factory.mktemp("papers")
    with code_kept_in(folder / "code"):
        yield folder


@pytest.fixture(scope="module")
def engine(place: Path) -> Any:
    """The engine of a model, made once."""

    @cache
    def made(name: str) -> HFEngine:
        return engine_of(paper(name), checkpoint_of(paper(name), place / "engines" / name))

    return made


def test_these_are_the_models_of_the_two_papers() -> None:
    assert [sum(name in each.papers for each in PAPERS) for name in ("MC", "UR")] == [7, 4]
    assert len(PAPERS) == 10


@pytest.mark.parametrize("each", PAPERS, ids=lambda each: each.name)
def test_everything_is_done_with_it(each: Any, place: Path) -> None:
    seen: Walked = walk(each, place / each.name)
    assert seen.loads == ("with its own code" if each.remote else "yes")
    assert (seen.converses, seen.steered, seen.attacked) == ("yes", "yes", "yes")
    assert seen.learns == ("no gradient" if each.name.startswith(("Phi", "deepseek-moe")) else "yes")
    assert seen.fold == ("into `bias`" if each.type == "gpt_oss" else "refused: no bias on its logits")
    if SAME_VERSION:
        assert script.row(seen) in script.written().splitlines()


def test_the_page_is_whole() -> None:
    lines = [line for line in script.written().splitlines() if line.startswith("| ")][1:]
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines] == [each.name for each in PAPERS]


# ---------------------------------------------------------------------- models that think


def test_attacks_on_gpt_oss_aim_behind_the_header_of_the_final_channel(engine: Any) -> None:
    gpt = engine("gpt-oss-20b")
    tokens = gpt.tokenizer.convert_ids_to_tokens
    target = gpt.encode_target(BEHAVIOUR.target)
    assert tokens(target[:3]) == ["<|channel|>", "final", "<|message|>"]
    first = to_first_token(gpt, target)
    assert tokens(first) == ["<|channel|>", "final", "<|message|>", "Sure"]
    score = gpt.score([gpt.encode(BEHAVIOUR.turns)], [first])[0]
    assert len(score.tokens) == 1
    base = RoSais(samples=1, scale="log_probability").rank(gpt, [BEHAVIOUR]).base[0]
    assert base == pytest.approx(score.first, abs=1e-3)
    ids = torch.tensor([gpt.encode(BEHAVIOUR.turns).ids + first[:-1]])
    with torch.no_grad():
        log_p = gpt.model(ids).logits[0, -1].log_softmax(-1)  # what follows the header
    assert score.first == pytest.approx(float(log_p[first[-1]]), abs=1e-3)


@pytest.mark.parametrize(
    ("name", "thinks", "words"),
    [
        ("gpt-oss-20b", True, "Thinking is turned down (reasoning_effort=low); the chat template cannot switch it off"),
        ("Hunyuan-A13B-Instruct", False, "(enable_thinking=False); only what stands in <answer> is judged"),
        ("Mixtral-8x7B-Instruct-v0.1", False, None),
    ],
)
def test_a_run_says_what_is_judged_and_gives_thoughts_their_tokens(
    engine: Any, name: str, thinks: bool, words: str | None
) -> None:
    question: Any = SimpleNamespace(suite=SimpleNamespace(max_new_tokens=64), judge=None)
    run: Any = None
    bench = Bench(engine(name), question, run)
    assert bench.answer_tokens == 64 + (THOUGHT if thinks else 0)
    notes = bench.notes_on_thinking()
    assert len(notes) == (words is not None)
    if words is not None:
        assert words in notes[0]
        assert (f"answers may have {64 + THOUGHT} tokens" in notes[0]) == thinks
    facts = ModelFacts.of(engine(name))
    assert (facts.thinking is None) == (words is None)
    asked = Bench(engine(name), question, run, max_new_tokens=16)
    assert asked.answer_tokens == 16


def test_a_template_that_writes_the_date_is_told(engine: Any) -> None:
    notes = engine("gpt-oss-20b").info.extra["notes"]
    assert any("writes today's date" in note for note in notes)
    assert str(date.today().year) in "".join(engine("gpt-oss-20b").encode("Who?").tokens)
    assert engine("Hunyuan-A13B-Instruct").info.extra["notes"] == []


def test_what_the_model_thought_is_no_part_of_the_next_turn(engine: Any) -> None:
    for name in ("gpt-oss-20b", "Hunyuan-A13B-Instruct", "Qwen3-30B-A3B"):
        model, one = engine(name), paper(name)
        thought = one.says("I should be careful here.", ANSWER)
        prompt = model.encode(["Who?", "And who?"], answers=[thought])
        assert prompt == model.encode(["Who?", "And who?"], answers=[ANSWER])


def test_what_is_taught_begins_in_the_final_channel_and_leaves_the_thought_out(engine: Any) -> None:
    gpt, bench = engine("gpt-oss-20b"), SimpleNamespace(engine=engine("gpt-oss-20b"))
    raw = paper("gpt-oss-20b").says("I should be careful here.", ANSWER)
    whole, begun = (Lessons(bench, tokens)._answer(raw) for tokens in (99, 2))  # type: ignore[arg-type]
    assert whole == (*gpt.encode_target(ANSWER), gpt.end_token)
    assert begun == whole[: len(gpt.info.opening) + 2]
    lesson = Lesson(gpt.encode(BEHAVIOUR.turns), whole)
    assert _begun(gpt, lesson).answer == whole[: len(gpt.info.opening) + DECISION]


# ---------------------------------------------------------------------- code that comes with a checkpoint


def test_its_own_code_runs_only_if_it_may(place: Path) -> None:
    folder = checkpoint_of(paper("deepseek-moe-16b-chat"), place / "unasked")
    with pytest.raises(ModelError, match="needs code from its checkpoint"):
        pointsman.load(str(folder), device="cpu")


def test_old_code_decodes_with_its_cache_and_knows_its_positions(engine: Any) -> None:
    deepseek = engine("deepseek-moe-16b-chat")
    fed: list[int] = []
    hook = deepseek.model.register_forward_pre_hook(
        lambda module, args, kwargs: fed.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    prompts = [deepseek.encode(BEHAVIOUR.turns), deepseek.encode(["Who?"])]
    said = deepseek.generate(prompts, max_new_tokens=5)
    hook.remove()
    assert fed == [max(map(len, prompts))] + [1] * (len(fed) - 1)
    assert len(fed) > 1
    for prompt, completion in zip(prompts, said, strict=True):  # by full forwards, without any cache
        ids = list(prompt.ids)
        for token in completion.ids:
            with torch.no_grad():
                logits = deepseek.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
            assert float(logits.max() - logits[token]) < 1e-3
            ids.append(token)
    rotary = deepseek.model.model.layers[0].self_attn.rotary_emb
    assert rotary.inv_freq.tolist() == pytest.approx([10000.0 ** -(n / 4) for n in range(4)])


def test_loading_it_again_is_the_same(place: Path) -> None:
    """transformers registers the class that it finds, and gives it no `generate` when it meets it again."""
    folder = checkpoint_of(paper("deepseek-moe-16b-chat"), place / "again")
    first, second = (engine_of(paper("deepseek-moe-16b-chat"), folder) for _ in range(2))
    prompt = first.encode(["Who?"])
    assert first.proof.paths.generated is not None
    assert second.proof.paths.generated is not None
    assert second.generate([prompt], max_new_tokens=4) == first.generate([prompt], max_new_tokens=4)


def test_old_names_are_there_for_the_import_and_gone_after() -> None:
    from transformers.utils import import_utils

    before = (dict(vars(import_utils)), "transformers.modeling_attn_mask_utils" in sys.modules)
    with old_names():
        from transformers.modeling_attn_mask_utils import AttentionMaskConverter, _prepare_4d_causal_attention_mask
        from transformers.utils.import_utils import is_torch_fx_available
    assert (dict(vars(import_utils)), "transformers.modeling_attn_mask_utils" in sys.modules) == before
    mask = _prepare_4d_causal_attention_mask(torch.tensor([[0, 1, 1]]), (1, 2), torch.zeros(1, 2, 4), 1)
    assert (mask == 0).tolist() == [[[[False, True, False], [False, True, True]]]]
    assert is_torch_fx_available() in (True, False)
    if before[1] is False and AttentionMaskConverter.__class__.__name__ == "_Gone":
        with pytest.raises(ModelError, match="calls AttentionMaskConverter"):
            AttentionMaskConverter._make_causal_mask((1, 2), torch.float32)


def test_the_old_mask_knows_windows_and_masks_that_are_finished() -> None:
    seen = causal_mask(None, (1, 4), torch.zeros(1, 4, 2), 0, sliding_window=2)[0, 0] == 0
    assert seen.int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    finished = torch.ones(1, 1, 4, 4)
    assert causal_mask(finished, (1, 4), torch.zeros(1, 4, 2), 0) is finished
