"""Threads: a routing is for the thread that asked for it. An engine may be shared; a controlled model may not."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from engines import behaviours, small_engine
from families.tiny import tiny
from pointsman.engine.old_code import old_names
from pointsman.errors import ControlFailed, InterventionError
from pointsman.routing.control import control, prove
from pointsman.routing.intervention import Intervention

IDS = torch.tensor([[5, 17, 33, 9, 41, 22]])
FORCED = Intervention.force({0: [1, 6], 1: [0, 7], 2: [2, 3]})


def in_a_thread(work: Callable[[], Any]) -> Any:
    """What `work` returns, or raises, in a thread of its own."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result(timeout=120)


def generate(model: Any) -> list[list[int]]:
    answer: list[list[int]] = model.generate(
        input_ids=IDS, attention_mask=torch.ones_like(IDS), do_sample=False, max_new_tokens=5
    ).tolist()
    return answer


def test_a_model_under_control_refuses_other_threads() -> None:
    model = small_engine().model
    plain = generate(model)
    with control(model, FORCED):
        steered = generate(model)
        for call in (lambda: generate(model), lambda: model(input_ids=IDS), lambda: model.model.layers[0].mlp.gate(1)):
            with pytest.raises(ControlFailed, match="another thread"):
                in_a_thread(call)
        assert generate(model) == steered
    assert steered != plain
    assert in_a_thread(lambda: generate(model)) == plain


def test_a_forward_that_was_running_when_control_began_is_not_steered_in_silence() -> None:
    model = small_engine().model
    half_way, go_on = threading.Event(), threading.Event()

    def pause(*_: Any) -> None:
        if threading.current_thread() is not threading.main_thread():
            half_way.set()
            assert go_on.wait(60)

    hook = model.model.layers[0].register_forward_hook(pause)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(lambda: model(input_ids=IDS))
        assert half_way.wait(60)
        with control(model, FORCED):
            go_on.set()
            with pytest.raises(ControlFailed, match="another thread"):
                running.result(timeout=60)
    hook.remove()


def test_only_one_thread_controls_a_model() -> None:
    model = small_engine().model
    with control(model, FORCED), pytest.raises(InterventionError, match="already under control"):
        in_a_thread(lambda: control(model, FORCED).__enter__())
    assert in_a_thread(lambda: generate(model)) == generate(model)


def test_threads_share_an_engine() -> None:
    engine = small_engine()
    prompts = [engine.encode(b.turns) for b in behaviours(3)]
    targets = [engine.encode_target("Sure , here")] * 3
    rng = np.random.default_rng(0)
    routings = [None] + [
        Intervention.force({r.layer: r.draw(rng, 1)[0].tolist() for r in engine.routers}) for _ in range(3)
    ]

    def ask(number: int) -> tuple[Any, ...]:
        routing = routings[number % 4]
        said = [c.ids for c in engine.generate(prompts, routing=routing, max_new_tokens=6)]
        scored = [s.total for s in engine.score(prompts, targets, routing=routing)]
        used = engine.trace(prompts, routing=routing)[0].experts.tolist()
        with engine.scorer(prompts[:1], targets[:1], routing=routing) as scorer:
            return said, scored, used, scorer.totals.tolist()

    alone = [ask(number) for number in range(4)]
    assert len({str(answer[0]) for answer in alone}) == 4
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(ask, range(24)))
    assert all(answer == alone[number % 4] for number, answer in enumerate(together))


def test_another_thread_waits_while_a_scorer_is_open() -> None:
    engine = small_engine()
    prompts = [engine.encode(b.turns) for b in behaviours(1)]
    target = engine.encode_target("Sure")
    plain = engine.generate(prompts, max_new_tokens=4)[0].ids
    with ThreadPoolExecutor(1) as pool:
        with engine.scorer(prompts, [target]) as scorer:
            waiting = pool.submit(lambda: engine.generate(prompts, max_new_tokens=4)[0].ids)
            with pytest.raises(InterventionError, match="nothing else while"):
                engine.generate(prompts)
            scorer.tries(0, 0, {0: np.array([[0, 1]])})
            assert not waiting.done()
        assert waiting.result(timeout=120) == plain


def test_threads_that_come_to_a_new_model_together_share_one_proof() -> None:
    fresh = tiny("olmoe")
    with ThreadPoolExecutor(4) as pool:
        proofs = list(pool.map(lambda _: prove(fresh), range(4)))
    assert all(proof is proofs[0] for proof in proofs)


def test_old_names_are_given_to_one_thread_at_a_time() -> None:
    entered, leave, second = threading.Event(), threading.Event(), threading.Event()

    def hold() -> None:
        with old_names():
            entered.set()
            leave.wait(30)

    def wait() -> None:
        with old_names():
            second.set()

    first, other = threading.Thread(target=hold), threading.Thread(target=wait)
    first.start()
    assert entered.wait(30)
    other.start()
    assert not second.wait(0.2), "the names are taken away while another thread reads code"
    leave.set()
    assert second.wait(30)
    first.join()
    other.join()
