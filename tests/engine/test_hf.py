"""The engine: what a row gets depends on nothing but the row."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from engines import behaviours, small_engine
from pointsman.engine.batching import in_batches
from pointsman.engine.hf import HFEngine
from pointsman.engine.types import Prompt
from pointsman.errors import BadLogits, InterventionError, OutOfMemory, PromptTooLong, UsageError
from pointsman.methods.steps import stream
from pointsman.routing.intervention import Intervention

pytestmark = pytest.mark.versions


@pytest.fixture(scope="module")
def engine() -> HFEngine:
    return small_engine()


@pytest.fixture(scope="module")
def prompts(engine: HFEngine) -> list[Prompt]:
    turns = [b.turns for b in behaviours(3)]
    return [
        *(engine.encode(t) for t in turns),
        engine.encode(["?"]),
        engine.encode(["where is it", "so", "?"], answers=["a", "b"]),
    ]


def routings(engine: HFEngine, rows: int) -> list[Intervention | None]:
    rng = stream(0, "engine test")
    forced = [
        Intervention.force({r.layer: r.draw(rng, 1)[0].tolist() for r in engine.routers}, phase=phase)
        for phase in ("prefill", "decode", "both")
    ]
    return [[None, *forced][n % 4] for n in range(rows)]


def test_scores_do_not_depend_on_the_batch(engine: HFEngine, prompts: list[Prompt]) -> None:
    targets = [engine.encode_target(t) for t in ("Sure ,", "Sure , here is how to", "Sorry", "The", "Sure")]
    each = routings(engine, len(prompts))
    together = engine.score(prompts, targets, routing=each)
    for prompt, target, routing, joint in zip(prompts, targets, each, together, strict=True):
        alone = engine.score([prompt], [target], routing=routing)[0]
        assert alone.tokens == pytest.approx(joint.tokens, abs=1e-9)
        assert alone.first == pytest.approx(joint.first, abs=1e-9)
        assert alone.first == alone.tokens[0]


def test_a_score_is_the_log_softmax_of_a_plain_forward(engine: HFEngine, prompts: list[Prompt]) -> None:
    target = engine.encode_target("Sure , here is")
    with torch.no_grad():
        logits = engine.model(torch.tensor([[*prompts[0].ids, *target]])).logits[0].log_softmax(-1)
    expected = [float(logits[len(prompts[0]) - 1 + n, token]) for n, token in enumerate(target)]
    assert engine.score([prompts[0]], [target])[0].tokens == pytest.approx(expected, abs=1e-9)


def test_first_tokens_are_summed(engine: HFEngine, prompts: list[Prompt]) -> None:
    a, b = engine.encode_target("Sure")[0], engine.encode_target("The")[0]
    one, other = (engine.score([prompts[0]], [(token,)])[0].first for token in (a, b))
    both = engine.score([prompts[0]], [(a,)], first_tokens=[a, b])[0].first
    assert both == pytest.approx(torch.tensor([one, other]).logsumexp(0).item(), abs=1e-6)


def test_generation_does_not_depend_on_the_batch(engine: HFEngine, prompts: list[Prompt]) -> None:
    each = routings(engine, len(prompts))
    together = engine.generate(prompts, routing=each, max_new_tokens=6)
    alone = [engine.generate([p], routing=r, max_new_tokens=6)[0] for p, r in zip(prompts, each, strict=True)]
    assert together == alone
    assert len({c.ids for c in together}) > 1


def test_rows_are_prompts_however_they_are_batched(engine: HFEngine, prompts: list[Prompt]) -> None:
    targets = [engine.encode_target("Sure , here is")] * len(prompts)
    tilt = {2: [2.0, -2.0] * (engine.routers[2].experts // 2)}
    forced = Intervention.force([0, 1], layers=[1])
    named = {0: forced, 3: Intervention.bias(tilt), 4: forced}
    shared = Intervention.force([2, 3], layers=[0])
    routing = shared + Intervention.force([0, 1], layers=[1], rows=[0, 4])
    routing += Intervention.bias(tilt, rows=[3])
    each = [shared + named[row] if row in named else shared for row in range(len(prompts))]
    for size in (None, 1, 2):
        small = small_engine(batch_size=size)
        found, wanted = (small.score(prompts, targets, routing=r) for r in (routing, each))
        assert [s.tokens for s in found] == [pytest.approx(s.tokens, abs=1e-9) for s in wanted]
        assert small.generate(prompts, routing=routing, max_new_tokens=4) == (
            small.generate(prompts, routing=each, max_new_tokens=4)
        )
        found_, wanted_ = (small.trace(prompts, routing=r) for r in (routing, each))
        assert all((a.experts == b.experts).all() for a, b in zip(found_.layers, wanted_.layers, strict=True))


def test_rows_without_a_prompt_or_a_meaning_are_refused(engine: HFEngine, prompts: list[Prompt]) -> None:
    targets = [(1, 2)] * 2
    rule = Intervention.force([0, 1], layers=[1], rows=[2])
    with pytest.raises(InterventionError, match="row 2 of 2 prompts"):
        engine.score(prompts[:2], targets, routing=rule)
    with pytest.raises(InterventionError, match="names rows has no meaning here"):
        engine.generate(prompts[:2], routing=[None, rule])
    with (
        pytest.raises(InterventionError, match="names rows has no meaning here"),
        engine.scorer(prompts[:2], targets, routing=rule),
    ):
        pass
    with pytest.raises(InterventionError, match="names rows has no meaning here"), engine.patcher() as patcher:
        patcher.streams(prompts[:2], [None, rule])


def test_room_for_an_answer_does_not_depend_on_the_batch(prompts: list[Prompt]) -> None:
    engine = small_engine()
    engine._ends = []
    engine.model.generation_config.eos_token_id = None
    long = engine.encode(["where " * 100])
    room = engine.info.context - len(long)
    assert 0 < room < 40
    asked = [prompts[0], long, prompts[3]]
    together = engine.generate(asked, max_new_tokens=40)
    assert [len(c.ids) for c in together] == [40, room, 40]
    assert not any(c.finished for c in together)
    assert together == [engine.generate([p], max_new_tokens=40)[0] for p in asked]


def test_a_trace_leaves_no_recorder(engine: HFEngine, prompts: list[Prompt]) -> None:
    engine.trace(prompts[:1])
    assert engine._controller.recorder is None
    with pytest.raises(InterventionError):
        engine.trace(prompts[:1], routing=Intervention.force([0, 1], layers=[99]))
    assert engine._controller.recorder is None


def test_decoding_is_greedy_whatever_the_checkpoint_says(prompts: list[Prompt]) -> None:
    engine = small_engine()
    expected = engine.generate(prompts, max_new_tokens=5)
    engine.model.generation_config.do_sample = True
    engine.model.generation_config.temperature = 5.0
    engine.model.generation_config.repetition_penalty = 9.0
    engine.model.generation_config.max_length = 11
    assert engine.generate(prompts, max_new_tokens=5) == expected


def test_a_completion_ends_at_the_end_token(engine: HFEngine, prompts: list[Prompt]) -> None:
    free = engine.generate(prompts[:1], max_new_tokens=6)[0]
    assert not free.finished
    ended = small_engine()
    ended._ends = [free.ids[3]]
    cut = free.ids[: free.ids.index(free.ids[3])]
    done = ended.generate(prompts[:1], max_new_tokens=6)[0]
    assert (done.ids, done.finished) == (cut, True)


def test_a_trace_is_counted(engine: HFEngine, prompts: list[Prompt]) -> None:
    before = engine.cost.copy()
    engine.trace(prompts[:2])
    spent, tokens = engine.cost - before, 2 * max(len(p) for p in prompts[:2])
    assert (spent.forwards, spent.tokens) == (1, tokens)
    assert spent.seconds > 0


def test_traces_are_in_order_and_equal_one_by_one(engine: HFEngine, prompts: list[Prompt]) -> None:
    small = small_engine(batch_size=2)
    together = small.trace(prompts)
    for row, prompt in enumerate(prompts):
        alone = engine.trace([prompt])
        for layer in range(len(engine.routers)):
            mine = together[layer].select(row=row)
            assert mine.position.tolist() == list(range(len(prompt)))
            assert mine.experts.tolist() == alone[layer].experts.tolist()
            assert torch.allclose(torch.tensor(mine.logits), torch.tensor(alone[layer].logits), atol=1e-5)


def test_a_prompt_beyond_the_context_is_refused(engine: HFEngine) -> None:
    long = engine.encode(["where " * 200])
    with pytest.raises(PromptTooLong, match="context of 128"):
        engine.generate([long])
    with pytest.raises(PromptTooLong):
        engine.score([long], [(1,)])


def test_nan_weights_are_noticed_after_loading_too(prompts: list[Prompt]) -> None:
    engine = small_engine()
    with torch.no_grad():
        engine.model.lm_head.weight[3] = float("nan")
    with pytest.raises(BadLogits):
        engine.score(prompts[:1], [(1,)])
    with pytest.raises(BadLogits):
        engine.generate(prompts[:1], max_new_tokens=2)


def test_memory_running_out_halves_the_batch_and_changes_nothing() -> None:
    sizes: list[int] = []

    def compute(batch: Any) -> list[int]:
        sizes.append(len(batch))
        if len(batch) > 3:
            raise torch.OutOfMemoryError("no")
        return [2 * item for item in batch]

    assert list(in_batches(list(range(10)), 8, compute)) == [2 * n for n in range(10)]
    assert sizes == [8, 4, 2, 2, 2, 2, 2]


def test_not_even_one_row_fits() -> None:
    def compute(batch: Any) -> list[int]:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")

    with pytest.raises(OutOfMemory):
        list(in_batches([1, 2], 2, compute))


def test_an_inner_batch_that_does_not_fit_halves_the_outer() -> None:
    def outer(part: Any) -> list[int]:
        def inner(one: Any) -> list[int]:
            if len(part) > 2:
                raise torch.OutOfMemoryError("no")
            return list(one)

        return list(in_batches(part, 4, inner))

    assert list(in_batches(list(range(9)), 8, outer)) == list(range(9))


def test_other_errors_are_not_swallowed() -> None:
    def compute(batch: Any) -> list[int]:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        list(in_batches([1, 2], 2, compute))


def test_cost_counts_forwards_and_tokens(prompts: list[Prompt]) -> None:
    engine = small_engine()
    before = engine.cost.copy()
    engine.score([prompts[0]] * 4, [(1, 2)] * 4)
    spent = engine.cost - before
    assert (spent.forwards, spent.tokens) == (1, 4 * (len(prompts[0]) + 1))


def test_texts_where_prompts_are_wanted_are_told_how_to_make_them() -> None:
    engine = small_engine()
    prompt, target = engine.encode("the red tairn ?"), engine.encode_target("Sure ,")
    asks = (
        lambda given: engine.generate(given, max_new_tokens=2),
        lambda given: engine.trace(given),
        lambda given: engine.score(given, [target]),
        lambda given: engine.scorer(given, [target]).__enter__(),
    )
    for ask in asks:
        for given in (["the red tairn ?"], "a", prompt, [prompt.ids]):
            with pytest.raises(UsageError, match=r"engine\.encode"):
                ask(given)
    for targets, word in ((["Sure ,"], "encode_target"), ([], "0 targets for 1 prompts")):
        with pytest.raises(UsageError, match=word):
            engine.score([prompt], targets)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="max_new_tokens is 0"):
        engine.generate([prompt], max_new_tokens=0)
