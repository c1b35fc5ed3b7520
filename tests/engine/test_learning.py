"""`Learner`: gradients with respect to the routing are right, and nothing of it stays behind."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from engines import behaviours, small_engine
from pointsman.engine.hf import HFEngine
from pointsman.engine.learning import BACKWARD, Lesson
from pointsman.errors import BadLogits, InterventionError, OutOfMemory
from pointsman.routing.control import Controller, control
from pointsman.routing.intervention import Intervention, Phase
from pointsman.routing.layout import Layout
from pointsman.routing.plan import Edits, Trainable

pytestmark = pytest.mark.versions

PHASES: tuple[Phase, ...] = ("prefill", "decode", "both")


def lessons_of(engine: HFEngine, count: int = 4) -> list[Lesson]:
    """Prompts of different lengths, and answers of different lengths."""
    made = []
    for n, b in enumerate(behaviours(count)):
        turns = [b.goal] * (1 + n % 2)
        prompt = engine.encode(turns, answers=["Sorry"] * (len(turns) - 1))
        made.append(Lesson(prompt, engine.encode_target(b.target)[: 4 - n % 4], b.source))
    return made


def vectors_of(engine: HFEngine, seed: int = 0, scale: float = 1.0) -> list[Tensor]:
    """Numbers that float32, in which an intervention holds its vectors, holds too."""
    draw = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(r.experts, generator=draw, dtype=torch.float64) * scale for r in engine.routers]
    return [(row * 256).round() / 256 for row in drawn]


def as_bias(vectors: Sequence[Tensor | None], phase: Phase) -> Intervention:
    return Intervention.bias({n: v.tolist() for n, v in enumerate(vectors) if v is not None}, phase=phase)


def score(engine: HFEngine, lessons: Sequence[Lesson], routing: Intervention | None = None) -> list[float]:
    return [
        s.total for s in engine.score([x.prompt for x in lessons], [x.answer for x in lessons], routing=routing)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def engine() -> HFEngine:
    return small_engine()


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("family", ["olmoe", "gpt_oss", "deepseek_v3"])
def test_it_says_what_the_engine_scores_under_the_same_bias(family: str, phase: Phase) -> None:
    engine = small_engine(family)
    lessons, vectors = lessons_of(engine), vectors_of(engine)
    with engine.learner() as learner:
        free = learner.say(lessons).answer()
        said = learner.say(lessons, Trainable(vectors, phase)).answer()
        alone = torch.cat([learner.say([lesson], Trainable(vectors, phase)).answer() for lesson in lessons])
    assert free.tolist() == pytest.approx(score(engine, lessons), abs=1e-5)
    assert said.tolist() == pytest.approx(score(engine, lessons, as_bias(vectors, phase)), abs=1e-5)
    assert alone.tolist() == pytest.approx(said.tolist(), abs=1e-5)
    moved = (said - free).abs()
    assert min(moved[:3]) > 1e-3
    assert len(lessons[3].answer) == 1
    assert (moved[3] > 1e-3) == (phase != "decode")  # it has no token after the first to be steered


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("family", ["olmoe", "gpt_oss", "deepseek_v3"])
def test_gradients_are_those_of_finite_differences(family: str, phase: Phase) -> None:
    """At vectors where no step changes which experts are chosen: that has no gradient."""
    engine = small_engine(family)
    lessons, vectors = lessons_of(engine, 2), [v.requires_grad_() for v in vectors_of(engine, 1, 0.3)]
    with engine.learner() as learner:
        base = learner.say(lessons)
        said = learner.say(lessons, Trainable(vectors, phase))
        weight = torch.tensor([1.0, -0.5])
        (said.answer() * weight).sum().backward()
    gradients = [v.grad for v in vectors]
    assert all(g is not None and g.dtype == torch.float64 for g in gradients)
    assert base.log_p.requires_grad is False
    step, draw = 2**-9, np.random.default_rng(0)
    checked = 0
    for layer, router in enumerate(engine.routers):
        steepest = gradients[layer].abs().argsort(descending=True)[:2].tolist()
        for expert in {*steepest, int(draw.integers(router.experts))}:
            ends = []
            for sign in (1, -1):
                there = [v.detach().clone() for v in vectors]
                there[layer][expert] += sign * step
                totals = score(engine, lessons, as_bias(there, phase))
                ends.append(totals[0] - 0.5 * totals[1])
            slope = (ends[0] - ends[1]) / (2 * step)
            assert gradients[layer][expert].item() == pytest.approx(slope, abs=2e-3, rel=2e-3), (layer, expert)
            checked += abs(slope) > 0.01
    assert checked >= 3


def test_divergence_is_kl_over_the_answer_alone(engine: HFEngine) -> None:
    lessons, vectors = lessons_of(engine), vectors_of(engine)
    with engine.learner() as learner:
        base, said = learner.say(lessons), learner.say(lessons, Trainable(vectors))
    found = said.divergence(base)
    for n, lesson in enumerate(lessons):
        p, q = (s.log_p[n, -len(lesson.answer) :].double() for s in (base, said))
        assert found[n].item() == pytest.approx(float((p.exp() * (p - q)).sum()), abs=1e-5)
    assert min(found) > 1e-3
    assert torch.equal(base.divergence(base), torch.zeros(len(lessons)))


def test_no_vector_for_a_layer_is_no_gradient_and_no_effect(engine: HFEngine) -> None:
    lessons = lessons_of(engine, 2)
    only = vectors_of(engine)[1].requires_grad_()
    with engine.learner() as learner:
        some = learner.say(lessons, Trainable([None, only, None], "prefill")).answer()
        none = learner.say(lessons, Trainable([None, None, None]))
    some.sum().backward()
    assert only.grad.abs().max() > 0
    assert some.tolist() == pytest.approx(score(engine, lessons, as_bias([None, only, None], "prefill")), abs=1e-5)
    assert none.answer().tolist() == pytest.approx(score(engine, lessons), abs=1e-5)
    assert not none.log_p.requires_grad


@pytest.mark.parametrize("rows", [None, 1, 2])
def test_a_mean_and_its_gradient_are_gathered_over_parts_longest_first(rows: int | None) -> None:
    engine = small_engine(batch_size=rows and rows * BACKWARD)
    lessons, vectors = lessons_of(engine, 5), [v.requires_grad_() for v in vectors_of(engine)]
    parts: list[list[Lesson]] = []

    with engine.learner() as learner:

        def unlikely(some: Sequence[Lesson]) -> Tensor:
            parts.append(list(some))
            return -learner.say(some, Trainable(vectors)).answer()

        mean, found = learner.gradients(lessons, vectors, unlikely)
        literal = -learner.say(lessons, Trainable(vectors)).answer().mean()
    wanted = torch.autograd.grad(literal, vectors)
    assert mean == pytest.approx(literal.item(), rel=1e-6)
    for a, b in zip(found, wanted, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-6)
    assert all(v.grad is None for v in vectors)
    assert [len(part) for part in parts] == {None: [5], 1: [1] * 5, 2: [2, 2, 1]}[rows]
    assert sorted(map(id, (x for part in parts for x in part))) == sorted(map(id, lessons))
    lengths = [len(x.prompt) + len(x.answer) for part in parts for x in part]
    assert lengths == sorted(lengths, reverse=True)


def test_a_part_that_does_not_fit_is_halved(engine: HFEngine) -> None:
    lessons, vectors = lessons_of(engine, 4), [v.requires_grad_() for v in vectors_of(engine)]
    sizes: list[int] = []
    with engine.learner() as learner:

        def unlikely(some: Sequence[Lesson]) -> Tensor:
            sizes.append(len(some))
            if len(some) > 2:
                raise torch.OutOfMemoryError
            return -learner.say(some, Trainable(vectors)).answer()

        mean, found = learner.gradients(lessons, vectors, unlikely)
        whole = learner.gradients(lessons, vectors, lambda some: -learner.say(some, Trainable(vectors)).answer())
        with pytest.raises(OutOfMemory):
            learner.gradients(lessons[:1], vectors, lambda some: unlikely([*some] * 3))
    assert sizes[:3] == [4, 2, 2]
    assert mean == pytest.approx(whole[0], rel=1e-6)
    assert all(torch.allclose(a, b, rtol=0, atol=1e-6) for a, b in zip(found, whole[1], strict=True))


def test_every_forward_is_counted(engine: HFEngine) -> None:
    lessons, vectors = lessons_of(engine, 2), [v.requires_grad_() for v in vectors_of(engine)]
    before, started = engine.cost.copy(), time.perf_counter()
    with engine.learner() as learner:
        learner.say(lessons)
        learner.gradients(lessons, vectors, lambda some: learner.say(some, Trainable(vectors)).answer())
    spent, took = engine.cost - before, time.perf_counter() - started
    longest = max(len(x.prompt) + len(x.answer) - 1 for x in lessons)
    assert (spent.forwards, spent.tokens, spent.token_layers) == (2, 4 * longest, 4 * longest * 3)
    assert 0 < spent.seconds <= took


def test_the_unsteered_model_lesson_by_lesson(engine: HFEngine) -> None:
    lessons = lessons_of(engine)
    with engine.learner() as learner:
        rows = list(learner.unsteered(lessons, 2))
        for lesson, row in zip(lessons, rows, strict=True):
            alone = learner.say([lesson]).log_p[0]
            assert row.shape == alone.shape == (len(lesson.answer), alone.shape[-1])
            assert torch.allclose(row, alone, rtol=0, atol=1e-5)


# ---------------------------------------------------------------------- nothing stays behind


def left_behind(engine: HFEngine) -> list[str]:
    """What is still attached to a model."""
    found = [r.path for r in engine.routers if "forward" in engine.model.get_submodule(r.path).__dict__]
    return found + [str(h) for h in (*engine.model._forward_pre_hooks.values(), *engine.model._forward_hooks.values())]


@contextmanager
def nothing_stays(engine: HFEngine) -> Iterator[None]:
    flags = {name: p.requires_grad for name, p in engine.model.named_parameters()}
    lessons = lessons_of(engine, 2)
    before = score(engine, lessons)
    yield
    assert left_behind(engine) == []
    assert {name: p.requires_grad for name, p in engine.model.named_parameters()} == flags
    assert all(p.grad is None for p in engine.model.parameters())
    assert engine._controller.trainable is None
    assert score(engine, lessons) == before  # bit for bit
    assert engine.generate([lessons[0].prompt], max_new_tokens=2)


def learn(engine: HFEngine) -> None:
    vectors = [v.requires_grad_() for v in vectors_of(engine)]
    with engine.learner() as learner:
        assert left_behind(engine) != []
        assert not any(p.requires_grad for p in engine.model.parameters())
        learner.say(lessons_of(engine, 2), Trainable(vectors)).answer().sum().backward()
    assert all(v.grad is not None for v in vectors)


def test_weights_are_as_before_some_trainable_some_not() -> None:
    engine = small_engine()
    for n, p in enumerate(engine.model.parameters()):
        p.requires_grad_(n % 2 == 0)
    with nothing_stays(engine):
        learn(engine)


def test_nothing_stays_after_an_exception_in_the_block() -> None:
    engine = small_engine()

    def fail() -> None:
        with engine.learner() as learner:
            learner.say(lessons_of(engine, 1), Trainable(vectors_of(engine)))
            raise ZeroDivisionError

    with nothing_stays(engine), pytest.raises(ZeroDivisionError):
        fail()


def test_nothing_stays_after_an_exception_in_the_middle_of_a_forward() -> None:
    engine = small_engine()
    lessons, wrong = lessons_of(engine, 2), [torch.zeros(3)] * 3
    with nothing_stays(engine):
        with pytest.raises(RuntimeError), engine.learner() as learner:
            learner.say(lessons, Trainable(wrong))
        with engine.learner() as learner:  # and within one block: the next forward is unsteered again
            with pytest.raises(RuntimeError):
                learner.say(lessons, Trainable(wrong))
            free = learner.say(lessons).answer().tolist()
    assert free == pytest.approx(score(engine, lessons), abs=1e-5)


def test_the_engine_answers_nothing_else_meanwhile(engine: HFEngine) -> None:
    (lesson,) = lessons_of(engine, 1)
    prompts, targets = [lesson.prompt], [lesson.answer]
    calls: list[Callable[[], Any]] = [
        lambda: engine.generate(prompts, max_new_tokens=1), lambda: engine.score(prompts, targets),
        lambda: engine.trace(prompts), lambda: engine.scorer(prompts, targets).__enter__(),
        lambda: engine.patcher().__enter__(), lambda: engine.learner().__enter__(),
    ]  # fmt: skip
    with engine.learner() as learner:
        for call in calls:
            with pytest.raises(InterventionError, match="while its scorer, patcher or learner is open"):
                call()
        assert learner.say([lesson]).answer().isfinite().all()  # and it has not suffered
    engine.score(prompts, targets)


def test_a_model_under_control_is_not_learnt_on(engine: HFEngine) -> None:
    with control(engine.model, Intervention.mask([0, 1], layers=0)):
        flags = [p.requires_grad for p in engine.model.parameters()]
        with pytest.raises(InterventionError, match="already under control"), engine.learner():
            pass
        assert [p.requires_grad for p in engine.model.parameters()] == flags
    learn(engine)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_logits_are_refused_with_and_without_gradients(bad: float) -> None:
    engine = small_engine()
    lessons = lessons_of(engine, 2)
    with torch.no_grad():
        kept = engine.model.lm_head.weight.clone()
        engine.model.lm_head.weight[5, 3] = bad
    with engine.learner() as learner:
        for vectors in (None, vectors_of(engine)):
            with pytest.raises(BadLogits, match="NaN or infinite logits"):
                learner.say(lessons, Trainable(vectors))
        with torch.no_grad():
            engine.model.lm_head.weight.copy_(kept)
        learner.say(lessons)
    with engine.learner() as learner, pytest.raises(BadLogits):
        learner.say(lessons, Trainable([v * float("nan") for v in vectors_of(engine)]))
    with nothing_stays(engine):
        learn(engine)


def test_a_token_that_the_model_rules_out_is_not_a_bad_logit(engine: HFEngine) -> None:
    """-inf at other tokens of the vocabulary is a way to forbid them."""
    lessons = lessons_of(engine, 2)
    hook = engine.model.lm_head.register_forward_hook(
        lambda module, args, out: out.index_fill(-1, torch.tensor([0]), float("-inf"))
    )
    assert all(0 not in lesson.answer for lesson in lessons)
    vectors = [v.requires_grad_() for v in vectors_of(engine)]
    try:
        with engine.learner() as learner:
            said = learner.say(lessons, Trainable(vectors))
            moved = said.divergence(learner.say(lessons))
            (said.answer() + moved).sum().backward()
            assert said.answer().isfinite().all()
            assert moved.isfinite().all()
            assert all(v.grad.isfinite().all() and v.grad.any() for v in vectors)
    finally:
        hook.remove()


# ---------------------------------------------------------------------- on top of a plan


def run(engine: HFEngine, lesson: Lesson, routing: Intervention, learnt: Trainable | None) -> Tensor:
    """Logits of one row under a routing with something learnt on top. Shape: [T, V]."""
    controller = Controller(engine.model, engine.routers, engine.info.fingerprint)
    controller.set(routing, prompt_lengths=[len(lesson.prompt)])
    controller.trainable = learnt
    with controller.attached(), torch.no_grad():
        return engine.model(torch.tensor([[*lesson.prompt.ids, *lesson.answer]]), use_cache=False).logits[0]


@pytest.mark.parametrize("phase", PHASES)
def test_what_is_learnt_is_added_before_the_plan(engine: HFEngine, phase: Phase) -> None:
    (lesson,), vectors = lessons_of(engine, 1), vectors_of(engine, 3)
    plans = [
        Intervention.bias({0: [0.5] * 8, 2: list(range(8))}),
        Intervention.pin({1: [3]}, {1: [0], 2: [4]}),
        Intervention.mask([0, 1, 5], layers=1) + Intervention.bias({1: [1.0, -1.0] * 4}, phase="decode"),
        Intervention.mask([2, 3, 4, 5], layers=2, positions=[0, 3]),
    ]
    for plan in plans:
        found = run(engine, lesson, plan, Trainable(vectors, phase))
        together = as_bias(vectors, phase) + plan
        assert torch.allclose(found, run(engine, lesson, together, None), rtol=0, atol=1e-9)
        assert not torch.allclose(found, run(engine, lesson, plan, None), rtol=0, atol=1e-6)


def test_it_joins_whatever_edits_there_are() -> None:
    layout = Layout(torch.tensor([[-1, 0, 1], [0, 1, 2]]), torch.tensor([[False, False, True], [False, True, True]]))
    vector = torch.arange(4.0)
    logits = torch.zeros(6, 4)
    decode = layout.decode.reshape(-1)
    for phase, here in (("both", torch.ones(6).bool()), ("decode", decode), ("prefill", ~decode)):
        edits = Trainable([None, vector], phase).join(None, layout, 1)  # type: ignore[arg-type]
        assert isinstance(edits, Edits)
        assert torch.equal(edits.apply(logits), here[:, None] * vector)
    assert Trainable([None, vector]).join(None, layout, 0) is None
    outside = torch.tensor([True, False, False, True])
    closed = Trainable([vector]).join(Edits(outside), layout, 0)
    assert closed is not None
    assert torch.equal(closed.apply(logits)[0], torch.tensor([float("-inf"), 1.0, 2.0, float("-inf")]))
    before = Edits(outside)
    assert Trainable([None]).join(before, layout, 0) is before
    assert before._learnt is None
