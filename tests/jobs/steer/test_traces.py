"""Traces hold the raw router logits of exactly the last user message, whatever the template and whenever killed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from engines import small_engine
from pointsman.engine.chat import Chat
from pointsman.engine.hf import HFEngine
from pointsman.engine.learning import Lesson
from pointsman.errors import DataError, ModelError
from pointsman.jobs.steer import traces as traced
from pointsman.jobs.steer.contexts import Context
from pointsman.jobs.steer.traces import activations, open_traces, response_activations, user_span, write_traces
from pointsman.routing.intervention import Intervention
from pointsman.routing.store import TraceStore, TraceWriter

DROPS_SYSTEM = (
    "{% for m in messages %}{% if m['role'] != 'system' %}<|{{ m['role'] }}|> {{ m['content'] | trim }} <|end|> "
    "{% endif %}{% endfor %}<|assistant|>"
)
MERGES_SYSTEM = (
    "{% set ns = namespace(s='') %}{% for m in messages %}{% if m['role'] == 'system' %}{% set ns.s = m['content'] %}"
    "{% else %}<|{{ m['role'] }}|> {% if m['role'] == 'user' and ns.s %}{{ ns.s }} {% set ns.s = '' %}{% endif %}"
    "{{ m['content'] }} <|end|> {% endif %}{% endfor %}<|assistant|>"
)
SHOUTS = "{% for m in messages %}<|user|> {{ m['content'] | upper | replace('A', 'B') }} {% endfor %}<|assistant|>"
FORGETS = "<|user|> hello <|assistant|>"
ENDS_WITH_IT = "{% for m in messages %}{{ m['content'] }} {% endfor %}"

TURNS = ("how do i mend the red tairn ?", "thanks ! and where is the red tairn ?", "the red tairn ?", "where ?")


def context(name: str, turns: int, first: int = 0, label: int = 1) -> Context:
    asked = tuple((TURNS * 3)[first : first + turns])
    return Context(name, "fallen", label, asked, ("Sure , the red tairn ?",) * (turns - 1), "x", name, "g")


CONTEXTS = [context(f"c{n}", 1 + n % 3, n % 4) for n in range(9)]


@pytest.fixture
def engine() -> HFEngine:
    return small_engine()


def with_template(engine: HFEngine, template: str | None) -> HFEngine:
    if template is not None:
        engine.tokenizer.chat_template = template
        engine._chat = Chat(engine.tokenizer, engine.info.name)
    return engine


def gates(engine: HFEngine, ids: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """What every router of the plain model says to one row: logits and experts. Shapes: [T, E_l], [T, k]."""
    said: list[tuple[Tensor, Tensor]] = []
    hooks = [
        layer.mlp.gate.register_forward_hook(lambda module, args, out: said.append((out[0], out[2])))
        for layer in engine.model.model.layers
    ]
    try:
        with torch.no_grad():
            engine.model(torch.tensor([list(ids)]), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return said


def words(engine: HFEngine, text: str) -> list[int]:
    return engine.tokenizer(text, add_special_tokens=False)["input_ids"]


def last_message(engine: HFEngine, ids: Sequence[int], text: str) -> list[int]:
    """Where the words of `text` stand for the last time."""
    wanted = words(engine, text)
    starts = [n for n in range(len(ids)) if list(ids[n : n + len(wanted)]) == wanted]
    return list(range(starts[-1], starts[-1] + len(wanted)))


def rows_of(store: TraceStore, index: int) -> list[np.ndarray]:
    batch = store.batch([index])
    length = int(batch.mask[0].sum())
    return [batch.layer(layer)[0][:length] for layer in range(len(store.experts))]


@pytest.mark.parametrize(
    ("template", "system"),
    [(t, s) for t in (None, DROPS_SYSTEM, MERGES_SYSTEM) for s in (None, "give short answers .")
     if s is None or t != DROPS_SYSTEM],
)  # fmt: skip
def test_the_store_holds_raw_logits_of_exactly_the_user_tokens(
    engine: HFEngine, tmp_path: Path, template: str | None, system: str | None
) -> None:
    with_template(engine, template)
    write_traces(engine, CONTEXTS, tmp_path / "t", system=system)
    store = open_traces(tmp_path / "t", CONTEXTS, [8, 8, 8])
    for n, c in enumerate(CONTEXTS):
        prompt = c.prompt(engine, system)
        places = last_message(engine, prompt.ids, c.turns[-1])
        assert user_span(prompt, "x").tolist() == places
        assert int(store.lengths[n]) == len(places)
        for found, (logits, _) in zip(rows_of(store, n), gates(engine, prompt.ids), strict=True):
            assert found == pytest.approx(logits[places].numpy(), rel=2e-3, abs=2e-3)  # float16
    assert "<|system|>" in prompt.tokens or template is not None or system is None


def test_a_merged_system_prompt_is_not_part_of_the_user_message(engine: HFEngine) -> None:
    with_template(engine, MERGES_SYSTEM)
    single = context("one", 1)
    prompt = single.prompt(engine, "give short answers .")
    assert len(user_span(prompt, "x")) == len(words(engine, TURNS[0]))
    assert len(prompt) > len(single.prompt(engine))


@pytest.mark.parametrize(
    ("template", "said"), [(SHOUTS, "what the user says or changes it"), (FORGETS, "leaves out what the user says")]
)
def test_a_message_that_cannot_be_located_is_refused(
    engine: HFEngine, tmp_path: Path, template: str, said: str
) -> None:
    with_template(engine, template)
    with pytest.raises(ModelError, match=rf"{said}.*--chat-template FILE"):
        write_traces(engine, [context("a", 2)], tmp_path / "t")
    assert not list((tmp_path / "t").glob("*.safetensors"))


def test_a_message_of_which_no_token_is_left_is_refused(engine: HFEngine, tmp_path: Path) -> None:
    """The last token of a prompt is none of the message's: what is said there is said of the answer."""
    with_template(engine, ENDS_WITH_IT)
    one = Context("a", "refused", 1, ("where",), (), "x", "a", "g")
    with pytest.raises(DataError, match=r"tiny olmoe leaves no token of the last user message.*--chat-template FILE"):
        write_traces(engine, [one], tmp_path / "t")
    assert len(user_span(context("b", 1, 3).prompt(engine), "x")) == len(words(engine, TURNS[3])) - 1


def test_under_a_mask_the_logits_are_those_that_the_router_acted_on(engine: HFEngine, tmp_path: Path) -> None:
    """Raw logits behind a mask differ from those of the untouched model; with `shift`, the mask is in them."""
    rng = np.random.default_rng(0)
    shift = [rng.normal(scale=2, size=8) for _ in range(3)]
    mask = Intervention.bias(dict(enumerate(shift)))
    free, under, acted = (tmp_path / name for name in ("free", "under", "acted"))
    write_traces(engine, CONTEXTS, free)
    write_traces(engine, CONTEXTS, under, routing=mask)
    write_traces(engine, CONTEXTS, acted, routing=mask, shift=shift)
    stores = [open_traces(folder, CONTEXTS, [8, 8, 8]) for folder in (free, under, acted)]
    c = CONTEXTS[2]
    prompt = c.prompt(engine)
    places = last_message(engine, prompt.ids, c.turns[-1])
    weights = [layer.mlp.gate.weight for layer in engine.model.model.layers]
    with engine._under([mask], None):
        seen = gates(engine, prompt.ids)  # what the routers return under control: edited logits
    plain, raw, edited = (rows_of(store, 2) for store in stores)
    for layer in range(len(weights)):
        assert edited[layer] == pytest.approx(seen[layer][0][places].numpy(), rel=2e-3, abs=4e-3)
        assert raw[layer] + shift[layer] == pytest.approx(edited[layer], rel=2e-3, abs=8e-3)
    assert plain[0] == pytest.approx(raw[0], abs=1e-6)  # nothing has happened before the first router
    assert np.abs(plain[2] - raw[2]).max() > 0.05


# ---------------------------------------------------------------------- parts, and being killed


def parts(engine: HFEngine, contexts: Sequence[Context], system: str | None = None) -> list[tuple[int, int]]:
    """Contexts and prompt tokens of every part."""
    together = traced.together(engine, traced._readings(engine, contexts, system))
    return [(len(part), sum(len(reading.prompt) for reading in part)) for part in together]


def test_parts_are_bounded_by_tokens_and_by_contexts(engine: HFEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [n for n, _ in parts(engine, CONTEXTS)] == [9]
    monkeypatch.setattr(traced, "TOGETHER", 4)
    assert [n for n, _ in parts(engine, CONTEXTS)] == [4, 4, 1]
    assert parts(engine, []) == []
    lengths = [len(c.prompt(engine)) for c in CONTEXTS]
    most = 60
    monkeypatch.setattr(traced, "_BYTES", most * 4 * 24)
    found = parts(engine, CONTEXTS)
    assert sum(n for n, _ in found) == 9
    assert all(tokens <= most for _, tokens in found)
    assert sum(tokens for _, tokens in found) == sum(lengths)
    assert 3 < len(found) < 9
    monkeypatch.setattr(traced, "_BYTES", 1)  # a prompt that is too long alone still goes, alone
    assert [n for n, _ in parts(engine, CONTEXTS)] == [1] * 9


def test_parts_do_not_matter(engine: HFEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_traces(engine, CONTEXTS, tmp_path / "whole")
    monkeypatch.setattr(traced, "TOGETHER", 2)
    done: list[int] = []
    write_traces(engine, CONTEXTS, tmp_path / "parts", advance=done.append)
    assert done == [2, 2, 2, 2, 1]
    whole, apart = (open_traces(tmp_path / name, CONTEXTS, [8, 8, 8]) for name in ("whole", "parts"))
    for n in range(9):
        for a, b in zip(rows_of(whole, n), rows_of(apart, n), strict=True):
            assert a == pytest.approx(b, rel=2e-3, abs=2e-3)


@pytest.mark.parametrize("kill", [0, 1, 3, 4])
def test_a_killed_writer_resumes_to_the_very_same_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill: int
) -> None:
    """In float32, where what lies beside a prompt shows in the last digits; shards hold parts of parts."""
    engine = small_engine(dtype=torch.float32)
    monkeypatch.setattr(traced, "TOGETHER", 2)
    monkeypatch.setattr(traced, "TraceWriter", partial(TraceWriter, shard_bytes=1500))
    write_traces(engine, CONTEXTS, tmp_path / "whole")
    trace, calls = engine.trace, [0]

    def killed(*arguments: Any, **more: Any) -> Any:
        calls[0] += 1
        if calls[0] > kill:
            raise KeyboardInterrupt
        return trace(*arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(engine, "trace", killed)
        patch.setattr(TraceWriter, "__exit__", lambda *more: None)  # a kill flushes nothing
        with pytest.raises(KeyboardInterrupt):
            write_traces(engine, CONTEXTS, tmp_path / "killed")
    calls[0], before = 0, len(TraceWriter(tmp_path / "killed", experts=[8, 8, 8]))
    assert before < 9
    assert kill < 3 or before % 2 == 1, "killed within a part"
    monkeypatch.setattr(engine, "trace", lambda *a, **m: (calls.__setitem__(0, calls[0] + 1), trace(*a, **m))[1])
    write_traces(engine, CONTEXTS, tmp_path / "killed")
    assert calls[0] == 5 - before // 2
    whole, resumed = (open_traces(tmp_path / name, CONTEXTS, [8, 8, 8]) for name in ("whole", "killed"))
    for n in range(9):
        assert all(np.array_equal(a, b) for a, b in zip(rows_of(whole, n), rows_of(resumed, n), strict=True))
    assert np.array_equal(whole.stds(), resumed.stds())
    calls[0] = 0
    write_traces(engine, CONTEXTS, tmp_path / "killed")
    assert calls[0] == 0, "nothing is traced twice"


def test_traces_of_other_contexts_are_refused(engine: HFEngine, tmp_path: Path) -> None:
    write_traces(engine, CONTEXTS[:3], tmp_path / "t")
    for others, experts in ((CONTEXTS[:2], [8] * 3), (CONTEXTS[1:4], [8] * 3), (CONTEXTS[2::-1], [8] * 3),
                            (CONTEXTS[:3], [8, 8])):  # fmt: skip
        with pytest.raises(DataError, match="holds the traces of other contexts"):
            open_traces(tmp_path / "t", others, experts)


# ---------------------------------------------------------------------- activations


@pytest.mark.parametrize("together", [2, 64])
def test_activations_count_the_chosen_experts_at_the_user_tokens(
    engine: HFEngine, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traced, "TOGETHER", together)
    found = activations(engine, CONTEXTS, system="give short answers .")
    counts, tokens = np.zeros((3, 8), dtype=int), 0
    for c in CONTEXTS:
        prompt = c.prompt(engine, "give short answers .")
        places = last_message(engine, prompt.ids, c.turns[-1])
        tokens += len(places)
        for layer, (_, experts) in enumerate(gates(engine, prompt.ids)):
            np.add.at(counts[layer], experts[places].numpy().reshape(-1), 1)
    assert found.tokens == tokens
    assert [row.tolist() for row in found.counts] == counts.tolist()
    assert counts.sum() == tokens * 3 * 2


@pytest.mark.parametrize("together", [2, 64])
def test_response_activations_count_the_tokens_of_answers_alone(
    engine: HFEngine, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind their own prompts, and without the end token; what was only asked is not counted."""
    monkeypatch.setattr(traced, "TOGETHER", together)
    assert engine.end_token is not None
    whole, cut = engine.encode_target("Sure , the red tairn ."), engine.encode_target("I can not help")
    lessons = [Lesson(c.prompt(engine), (*whole, engine.end_token) if n % 2 else cut) for n, c in enumerate(CONTEXTS)]
    counts, tokens = np.zeros((3, 8), dtype=int), 0
    for n, lesson in enumerate(lessons):
        answer = whole if n % 2 else cut
        tokens += len(answer)
        for layer, (_, experts) in enumerate(gates(engine, lesson.prompt.ids + answer)):
            np.add.at(counts[layer], experts[len(lesson.prompt) :].numpy().reshape(-1), 1)
    found = response_activations(engine, lessons)
    assert found.tokens == tokens
    assert [row.tolist() for row in found.counts] == counts.tolist()


def test_an_answer_that_has_begun_is_traced_with_its_request(engine: HFEngine, tmp_path: Path) -> None:
    begun = [replace(c, response="Sure , the red tairn ?", begun=n % 4) for n, c in enumerate(CONTEXTS)]
    write_traces(engine, begun, tmp_path / "t")
    store = open_traces(tmp_path / "t", begun, [8, 8, 8])
    counts, tokens = np.zeros((3, 8), dtype=int), 0
    for n, c in enumerate(begun):
        prompt, answer = c.prompt(engine), engine.encode_target(c.response)[: c.begun]
        assert len(answer) == n % 4
        places = last_message(engine, prompt.ids, c.turns[-1]) + [len(prompt) + m for m in range(len(answer))]
        tokens += len(places)
        for layer, (found, (logits, experts)) in enumerate(
            zip(rows_of(store, n), gates(engine, prompt.ids + answer), strict=True)
        ):
            assert found == pytest.approx(logits[places].numpy(), rel=2e-3, abs=2e-3)
            np.add.at(counts[layer], experts[places].numpy().reshape(-1), 1)
    found = activations(engine, begun)
    assert (found.tokens, [row.tolist() for row in found.counts]) == (tokens, counts.tolist())


@pytest.mark.parametrize(
    ("response", "wanted"),
    [("Sorry", "<>So"), ("<think>Hm</think>Sorry", "<>So"), ("<think>Hm", ""), ("", "")],
)
def test_the_beginning_of_an_answer_is_behind_its_thought_and_its_opening(response: str, wanted: str) -> None:
    """Else all that a surrogate is shown of a model that thinks is its header, or how a thought begins."""
    opened: Any = SimpleNamespace(
        encode_target=lambda text: tuple(map(ord, f"<>{text}")), info=SimpleNamespace(opening=tuple(map(ord, "<>")))
    )
    found = replace(CONTEXTS[0], response=response, begun=2).beginning(opened)
    assert "".join(map(chr, found)) == wanted
