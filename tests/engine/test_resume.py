"""Resumed forwards equal full ones, in every family, or the engine says why it does not resume."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch

from engines import behaviours, small_engine
from families.tiny import FAMILIES
from judging import OneByOne
from pointsman.engine import resume as resume_module
from pointsman.engine.hf import HFEngine
from pointsman.engine.patching import Cell
from pointsman.engine.resume import Resume
from pointsman.engine.scorer import FullScorer, ResumedScorer
from pointsman.engine.types import Prompt, best_candidate
from pointsman.errors import InterventionError, UsageError
from pointsman.methods.fsour import FSour
from pointsman.methods.masking import Masking
from pointsman.methods.rosais import RoSais
from pointsman.routing.intervention import Intervention
from pointsman.routing.replay import CannotReplay
from precision import near

pytestmark = pytest.mark.versions

# Recurrent states are not cached token by token; these resume from layers only.
RECURRENT = {"jamba", "qwen3_next"}
SHORT_SIGHTED: dict[str, dict[str, Any]] = {  # attention that does not reach back to the first token
    "gpt_oss": dict(sliding_window=3),
    "mixtral": dict(sliding_window=3),
    "llama4_text": dict(attention_chunk_size=4),
}


def asked(engine: HFEngine, count: int = 3) -> tuple[list[Prompt], list[tuple[int, ...]]]:
    """Prompts of different lengths, and targets of different lengths."""
    chosen = behaviours(count)
    prompts = [engine.encode(b.turns) for b in chosen]
    prompts = [
        Prompt(p.ids[: len(p) - n], p.tokens[: len(p) - n], p.roles[: len(p) - n]) for n, p in enumerate(prompts)
    ]
    targets = [engine.encode_target(b.target)[: 3 + n] for n, b in enumerate(chosen)]
    return prompts, targets


def without_resume(engine: HFEngine) -> HFEngine:
    engine._resume = None
    return engine


def in_full(
    engine: HFEngine, prompts: list[Prompt], targets: list[tuple[int, ...]], routing: Intervention | None = None
) -> FullScorer:
    score = without_resume(engine).score
    return FullScorer(score, engine.routers, engine._layers, prompts, targets, routing)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_resumes_or_says_why_not(family: str) -> None:
    engine = small_engine(family)
    if family in RECURRENT:
        assert "from any layer, but not from a token (some of its layers keep a recurrent state" in engine.resumes
    else:
        assert engine.resumes == "forwards are resumed from any layer and token"


@pytest.mark.parametrize(
    ("family", "changes"), [*((f, {}) for f in sorted(FAMILIES)), *SHORT_SIGHTED.items()],
    ids=[*sorted(FAMILIES), *(f"{name}-short-sighted" for name in SHORT_SIGHTED)],
)  # fmt: skip
def test_routes_grow_as_in_full_forwards(family: str, changes: dict[str, Any]) -> None:
    engine = small_engine(family, **changes)
    if family not in RECURRENT:
        assert engine._resume is not None
        engine._resume.split_from = 20  # both ways: the changed token alone, and all of them
    prompts, targets = asked(engine)
    close = near(engine.model)
    rng = np.random.default_rng(0)
    full = in_full(small_engine(family, **changes), prompts, targets)
    improved = 0
    with engine.scorer(prompts, targets) as scorer:
        assert isinstance(scorer, FullScorer if family in RECURRENT else ResumedScorer)
        assert scorer.totals == pytest.approx(full.totals, abs=close)
        for token in (0, 1, len(prompts[2]) - 1):
            for router in engine.routers:
                sets = {b: router.draw(rng, 4 + b) for b in range(3) if token < len(prompts[b])}
                fast, slow = scorer.tries(router.layer, token, sets), full.tries(router.layer, token, sets)
                winners = {}
                for b, values in slow.items():
                    assert fast[b] == pytest.approx(values, abs=close)
                    if values.max() > full.totals[b] + 1e-6:
                        winners[b] = best_candidate(values, full.totals[b])
                improved += len(winners)
                scorer.accept(winners)
                full.accept(winners)
    assert improved > 1


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_rows_that_share_a_prompt_score_as_alone(family: str) -> None:
    fast, slow = small_engine(family), without_resume(small_engine(family))
    prompts, targets = asked(fast)
    rng = np.random.default_rng(1)
    routing: list[Intervention | None] = [None]
    for router in fast.routers:
        routing += [Intervention.force(s, layers=router.layer, phase="prefill") for s in router.draw(rng, 2).tolist()]
    first, last = fast.routers[0], fast.routers[-1]
    routing.append(Intervention.bias({last.layer: rng.normal(size=last.experts).tolist()}))
    routing.append(
        Intervention.force({first.layer: first.draw(rng, 1)[0].tolist(), last.layer: last.draw(rng, 1)[0].tolist()})
    )
    rows = [(b, each) for each in routing for b in range(3)]
    args = ([prompts[b] for b, _ in rows], [targets[b] for b, _ in rows])
    for first_tokens in (None, (5, 6)):
        quick = fast.score(*args, routing=[each for _, each in rows], first_tokens=first_tokens)
        plain = slow.score(*args, routing=[each for _, each in rows], first_tokens=first_tokens)
        for one, other in zip(quick, plain, strict=True):
            assert one.tokens == pytest.approx(other.tokens, abs=near(fast.model))
            assert one.first == pytest.approx(other.first, abs=near(fast.model))
    assert len({round(s.total, 6) for s in quick}) > len(rows) // 2  # the routings do something
    assert fast.cost.token_layers < slow.cost.token_layers


@pytest.mark.parametrize("rows", [1, 3, None])
def test_the_batch_changes_no_result(rows: int | None) -> None:
    chosen = behaviours(3)
    engine, plain = small_engine(batch_size=rows), without_resume(small_engine())
    method = FSour(candidates=3, restarts=1, seed=2, log_tau=-1.0)
    quick, slow = method.find_routes(engine, chosen, 0), method.find_routes(plain, chosen, 0)
    for (before, steps, scored), (before_, steps_, scored_) in zip(quick, slow, strict=True):
        assert [(s.layer, s.position, s.experts) for s in steps] == [(s.layer, s.position, s.experts) for s in steps_]
        assert [s.log_prob for s in steps] == pytest.approx([s.log_prob for s in steps_], abs=1e-9)
        assert (before, scored) == (pytest.approx(before_, abs=1e-9), scored_)
        assert steps
    ranked, ranked_ = (RoSais(samples=3).rank(e, chosen) for e in (engine, plain))
    assert ranked.scores == pytest.approx(ranked_.scores, abs=1e-9)
    masks = [Masking(samples=3, max_new_tokens=4, score="target") for _ in range(2)]
    found, found_ = (
        m._chunk(e, chosen, _Anything(), (0, 2)) for m, e in zip(masks, (engine, plain), strict=True)
    )  # fmt: skip
    assert found["chosen"] == found_["chosen"]
    assert found["scores"] == pytest.approx(found_["scores"], abs=1e-12)


class _Anything(OneByOne):
    name, version, grades_content = "anything", "0", False

    def one(self, asked: Any, answer: Any) -> Any:
        from pointsman.judges.types import Verdict

        return Verdict("refused", 0.0, "")


def test_a_route_is_searched_on_top_of_a_routing() -> None:
    engine = small_engine(num_experts=8)
    prompts, targets = asked(engine)
    base = Intervention.mask({0: range(6), 2: range(2, 8)}) + Intervention.bias({1: [0.5] * 4 + [-0.5] * 4})
    with engine.scorer(prompts, targets, routing=base) as scorer:
        before = scorer.totals.copy()
        found = scorer.tries(0, 1, {b: np.array([[0, 1], [2, 5]]) for b in range(3)})
    plain = engine.score(prompts, targets, routing=base)
    assert before == pytest.approx([s.total for s in plain], abs=1e-9)
    for n, experts in enumerate(([0, 1], [2, 5])):
        routed = engine.score(prompts, targets, routing=base + Intervention.force({(0, 1): experts}, phase="prefill"))
        assert [found[b][n] for b in range(3)] == pytest.approx([s.total for s in routed], abs=1e-9)


@pytest.mark.parametrize("phase", ["prefill", "decode", "both"])
@pytest.mark.parametrize("kind", ["force", "bias"])
def test_a_route_is_searched_on_top_of_any_phase(phase: Any, kind: str) -> None:
    engine, plain = small_engine(), small_engine()
    assert engine._resume is not None
    engine._resume.split_from = 20
    prompts, targets = asked(engine)
    base = Intervention.force([2, 3], layers=[2], phase=phase)
    if kind == "bias":
        base = Intervention.bias({2: np.linspace(3, -3, engine.routers[2].experts)}, phase=phase)
    full = in_full(plain, prompts, targets, base)
    free = [s.total for s in plain.score(prompts, targets)]
    sets = {b: engine.routers[0].draw(np.random.default_rng(b), 4 + b) for b in (2, 0, 1)}
    with engine.scorer(prompts, targets, routing=base) as scorer:
        assert isinstance(scorer, ResumedScorer)
        assert scorer.totals == pytest.approx(full.totals, abs=1e-9)
        assert np.abs(scorer.totals - free).min() > 1e-6
        for token in (2, len(prompts[2]) - 1):
            for layer in (0, 1 if kind == "force" else 2):
                found, wanted = scorer.tries(layer, token, sets), full.tries(layer, token, sets)
                assert all(found[b] == pytest.approx(wanted[b], abs=1e-9) for b in sets)
                winners = {
                    b: best_candidate(v, full.totals[b]) for b, v in wanted.items() if v.max() > full.totals[b] + 1e-6
                }
                scorer.accept(winners)
                full.accept(winners)


@pytest.mark.parametrize("phase", ["prefill", "decode", "both"])
def test_patching_knows_the_phases(phase: Any) -> None:
    engine = small_engine()
    prompts, _ = asked(engine)
    base = Intervention.force([2, 3], layers=[1], phase=phase)
    with engine.patcher() as patcher:
        streams = patcher.streams(prompts, [base] * 3)
        cells = [Cell(row, 0, (1,)) for row in (2, 0)]
        patched = patcher.patched(streams, streams, cells, np.tile(np.arange(5), (3, 1)))
    for row, prompt in enumerate(prompts):
        alone = engine.score([prompt], [(4,)], routing=base)[0].total
        log_p = torch.from_numpy(streams.logits[row]).log_softmax(-1)
        assert float(log_p[4]) == pytest.approx(alone, abs=1e-9)
    assert patched.logits == pytest.approx(streams.logits[[2, 0], :5], abs=1e-9)


def test_dead_pairs_are_the_same_in_both_scorers() -> None:
    engine, plain = small_engine(dtype=torch.float32), small_engine(dtype=torch.float32)
    prompts, targets = asked(engine)
    full, last = in_full(plain, prompts, targets), len(engine.routers) - 1
    assert engine.routers[last].decoder_layer == engine._layers - 1
    token = len(prompts[1]) - 1
    sets = {b: engine.routers[last].draw(np.random.default_rng(b), 3) for b in range(3)}
    assert len(prompts[0]) - 1 > token >= len(prompts[2]) - 1
    with engine.scorer(prompts, targets) as scorer:
        for each in (scorer, full):
            dead = each.tries(last, 0, sets)
            assert all((dead[b] == each.totals[b]).all() for b in sets)
            some = each.tries(last, token, sets)
            assert (some[0] == each.totals[0]).all()
            assert np.abs(some[1] - each.totals[1]).min() > 1e-6
    assert all(type(v) is np.ndarray for v in some.values())


@pytest.mark.parametrize("family", ["olmoe", "qwen3_next"])
def test_an_open_scorer_or_patcher_lets_nothing_else_through(family: str) -> None:
    engine = small_engine(family)
    prompts, targets = asked(engine)
    before = engine.score(prompts, targets)
    route = Intervention.force([0, 1], layers=[1])

    def enter(block: Any) -> None:
        with block:
            pass

    for opened in (lambda: engine.scorer(prompts, targets), engine.patcher):
        with opened() as held:
            for other in (
                lambda: engine.generate(prompts, max_new_tokens=2),
                lambda: engine.score(prompts, targets, routing=route),
                lambda: engine.trace(prompts),
                lambda: enter(engine.scorer(prompts, targets, routing=route)),
                lambda: enter(engine.patcher()),
            ):
                with pytest.raises(InterventionError, match="nothing else while its scorer, patcher or learner"):
                    other()
            if hasattr(held, "tries"):
                found = held.tries(0, 0, {0: np.array([[0, 1]])})[0]
    forced = engine.score(prompts[:1], targets[:1], routing=Intervention.force({(0, 0): [0, 1]}))[0].total
    assert found[0] == pytest.approx(forced, abs=near(engine.model))
    assert engine.score(prompts, targets) == before


@pytest.mark.parametrize("family", ["olmoe", "qwen3_next", "deepseek_v3"])
def test_sets_that_cannot_be_selected_are_refused(family: str) -> None:
    engine = small_engine(family)
    prompts, targets = asked(engine)
    router = engine.routers[1]
    good = router.draw(np.random.default_rng(0), 20)
    k, far = router.top_k, [*range(router.top_k - 1), router.experts]
    with engine.scorer(prompts, targets) as scorer:
        for bad in ([0] * k, list(range(k + 1)), [0], far, [-1, *range(1, k)]):
            with pytest.raises(InterventionError, match="cannot select experts"):
                scorer.tries(1, 0, {0: good, 1: np.array([bad])})
        every = list(combinations(range(router.experts), k))
        for experts in every[:: max(len(every) // 40, 1)]:
            if not router.selectable(experts):
                with pytest.raises(InterventionError, match="cannot select experts"):
                    scorer.tries(1, 0, {0: np.array([experts])})
        assert len(scorer.tries(1, 0, {0: good})[0]) == 20


def test_an_empty_target_is_refused() -> None:
    engine = small_engine()
    prompts, targets = asked(engine)
    with pytest.raises(UsageError, match="target of prompt 1 is empty"):
        engine.score(prompts, [targets[0], (), targets[2]])
    with pytest.raises(UsageError, match="target of prompt 1 is empty"), engine.scorer(prompts[:2], [targets[0], ()]):
        pass


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
        {"full_attention": {"rope_type": "longrope"}, "sliding_attention": {"rope_type": "default"}},
        {"type": "longrope"},
    ],
)
def test_positions_that_depend_on_the_batch_are_not_resumed(rope: dict[str, Any]) -> None:
    engine = small_engine()
    assert isinstance(Resume.of(engine.model, engine._controller), Resume)
    engine.model.config.get_text_config().rope_parameters = rope
    reason = "its position embedding depends on the longest row of a batch"
    assert Resume.of(engine.model, engine._controller) == reason


def test_a_lookup_that_fails_is_a_reason_not_to_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = small_engine()

    def missing(*args: Any, **kwargs: Any) -> Any:
        raise KeyError("shared keys")

    monkeypatch.setattr(Resume, "remember", missing)
    assert Resume.of(engine.model, engine._controller) == "KeyError: 'shared keys'"


def test_a_shared_score_halves_its_prompts_when_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = small_engine()
    prompts, targets = asked(engine)
    rows = [b for b in range(3) for _ in range(4)]
    args = [prompts[b] for b in rows], [targets[b] for b in rows]
    routing = [Intervention.force(s, layers=[1]) for s in engine.routers[1].draw(np.random.default_rng(0), 12).tolist()]
    wanted = [s.total for s in engine.score(*args, routing=routing)]
    original = Resume.run

    def run(self: Resume, memory: Any, *rest: Any, **kwargs: Any) -> Any:
        if len(memory.ids) > 1:
            raise torch.OutOfMemoryError("too much")
        return original(self, memory, *rest, **kwargs)

    monkeypatch.setattr(Resume, "run", run)
    assert [s.total for s in engine.score(*args, routing=routing)] == pytest.approx(wanted, abs=1e-9)


def test_the_token_computed_apart_asks_for_no_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = small_engine()
    resume = engine._resume
    assert resume is not None
    assert resume._headless
    resume.split_from = 0
    prompts, targets = asked(engine)
    kept: list[int] = []
    head = engine.model.lm_head.forward
    monkeypatch.setattr(engine.model.lm_head, "forward", lambda hidden: (kept.append(hidden.shape[1]), head(hidden))[1])
    sets = {0: engine.routers[0].draw(np.random.default_rng(0), 3)}
    with engine.scorer(prompts, targets) as scorer:
        kept.clear()
        lean = scorer.tries(0, 2, sets)[0]
        assert kept[0] == 0
        resume._headless = False  # as for a model that cannot
        kept.clear()
        assert scorer.tries(0, 2, sets)[0] == pytest.approx(lean, abs=1e-12)
        assert kept[0] == 1


def test_a_model_that_needs_a_logit_is_still_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = small_engine()
    head = engine.model.lm_head.forward

    def last(hidden: torch.Tensor) -> torch.Tensor:
        hidden[:, -1]
        return head(hidden)

    monkeypatch.setattr(engine.model.lm_head, "forward", last)
    resume = Resume.of(engine.model, engine._controller)
    assert isinstance(resume, Resume)
    assert resume.tokens
    assert not resume._headless


def test_the_model_is_left_as_it_was_also_after_an_error() -> None:
    engine = small_engine()
    prompts, targets = asked(engine)
    before = engine.score(prompts[:1], targets[:1])

    def interrupted() -> None:
        with engine.scorer(prompts, targets) as scorer:
            scorer.tries(1, 0, {0: np.array([[0, 1]])})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not any("forward" in module.__dict__ for module in engine.model.modules())
    assert engine.score(prompts[:1], targets[:1]) == before
    assert engine.generate(prompts[:1], max_new_tokens=3)


def test_what_is_not_equal_is_not_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that uses its embeddings again at the end cannot be resumed from memory: refused, and still right."""
    engine = small_engine()
    model = engine.model
    norm = model.model.norm
    seen: list[torch.Tensor] = []
    model.model.embed_tokens.register_forward_hook(lambda module, args, output: seen.append(output))
    head = norm.forward
    monkeypatch.setattr(norm, "forward", lambda hidden: head(hidden + 0.1 * seen[-1].cumsum(1)))
    refused = HFEngine(model, engine.tokenizer, name="leaky")
    assert "forwards are resumed from any layer, but not from a token" in refused.resumes
    assert "is off by" in refused.resumes
    prompts, targets = asked(refused)
    with refused.scorer(prompts, targets) as scorer:
        assert isinstance(scorer, FullScorer)


def test_layers_that_return_more_than_the_stream_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = small_engine()
    layer = engine.model.model.layers[1]
    original = layer.forward

    def pair(*args: Any, **kwargs: Any) -> Any:
        return original(*args, **kwargs), torch.zeros(1)

    monkeypatch.setattr(layer, "forward", pair)
    said = Resume.of(engine.model, engine._controller)
    assert isinstance(said, str)
    assert said


def test_memory_that_runs_out_halves_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, plain = small_engine(), small_engine()
    prompts, targets = asked(engine)
    original = Resume.run
    sizes: list[int] = []

    def run(self: Resume, memory: Any, of_row: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        sizes.append(len(of_row))
        if len(of_row) > 4:
            raise torch.OutOfMemoryError("too much")
        return original(self, memory, of_row, *args, **kwargs)

    sets = {b: engine.routers[1].draw(np.random.default_rng(3), 6) for b in range(3)}
    with plain.scorer(prompts, targets) as scorer:
        wanted = scorer.tries(1, 2, sets)
    monkeypatch.setattr(resume_module.Resume, "run", run)
    with engine.scorer(prompts, targets) as scorer:
        found = scorer.tries(1, 2, sets)
        best = {b: best_candidate(v, scorer.totals[b]) for b, v in found.items()}
        winners = {b: winner for b, winner in best.items() if winner is not None}
        scorer.accept(winners)
        assert all(scorer.totals[b] == found[b][n] for b, n in winners.items())
    assert winners
    assert max(sizes) == 18
    for b in sets:
        assert found[b] == pytest.approx(wanted[b], abs=1e-9)


def test_only_the_best_candidate_can_be_kept() -> None:
    engine = small_engine()
    prompts, targets = asked(engine, 1)
    with engine.scorer(prompts, targets) as scorer:
        values = scorer.tries(0, 0, {0: engine.routers[0].draw(np.random.default_rng(0), 8)})[0]
        if values.max() > scorer.totals[0]:
            with pytest.raises(ValueError, match="is not its best"):
                scorer.accept({0: int(values.argmin())})


def test_restarts_aim_at_the_targets_in_turn() -> None:
    engine = small_engine()
    behaviour = behaviours(1)[0]
    other = type(behaviour)(**{**behaviour.__dict__, "targets": ("take the",)})
    method = FSour(candidates=2, cycle_targets=True, log_tau=math.log(0.8))
    assert [method.aimed(other, r) for r in range(3)] == [behaviour.target, "take the", behaviour.target]
    assert FSour().aimed(other, 1) == behaviour.target
    before = [method.find_routes(engine, [other], r)[0][0] for r in range(2)]
    prompt = engine.encode(other.turns)
    wanted = [engine.score([prompt], [engine.encode_target(t)])[0].total for t in (other.target, "take the")]
    assert before == pytest.approx(wanted, abs=1e-9)
    judge: Any = _Anything()
    (result,) = replace(method, restarts=2, max_new_tokens=2).search(engine, [other], judge)
    found = [search.cost for search in result.searches]
    targets = [engine.encode_target(t) for t in (other.target, "take the")]
    assert len(targets[0]) != len(targets[1])
    assert [c["tokens"] / c["rows"] for c in found] == [len(prompt) + len(t) - 1 for t in targets]


def test_a_route_is_of_prompt_tokens() -> None:
    with pytest.raises(UsageError, match="forces prompt tokens"):
        FSour(phase="decode")
    engine = small_engine()
    prompts, _ = asked(engine)
    steps = {(layer, token): [0, 1] for layer in range(len(engine.routers)) for token in range(len(prompts[2]))}
    routes = [None, *(Intervention.force(steps, phase=phase) for phase in ("prefill", "both"))]
    free, prefill, both = engine.generate([prompts[2]] * 3, routing=routes, max_new_tokens=8)
    assert prefill == both != free


def test_replay_needs_one_list_of_layers() -> None:

    from pointsman.routing.replay import Replay

    engine = small_engine()
    with pytest.raises(CannotReplay, match="one list"):
        Replay(engine.model, [replace(engine.routers[0], path="gate")])
