"""What else the model can do: tasks of lm-eval, solved as it is and under the routings that matter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pointsman.engine.types import Routing
from pointsman.errors import UnsupportedEnvironment, UsageError
from pointsman.runs.bench import Bench
from pointsman.runs.results import Claim, ClaimVerdict, Figure
from pointsman.stats.paired import Comparison, compare
from pointsman.stats.rates import Mean, Rate

if TYPE_CHECKING:
    from pointsman.integrations.lm_eval import Outcomes, Tasks
    from pointsman.runs.task_folder import TaskFolder

INSTALL = 'Install it: pip install "pointsman[utility]"'
MARGIN = 0.05
"""Tasks that a routing may leave unsolved: a share of documents."""
ArmKind = Literal["none", "routing", "control"]


# ---------------------------------------------------------------------- what is found


@dataclass(frozen=True, kw_only=True)
class TaskValue:
    """One metric of a task under one routing.

    Attributes:
        task: As it was named; of a group, over the documents of all its parts.
        metric: As lm-eval calls it, with its filter if it has one.
        higher_is_better: Whether more of it is better.
        value: A rate where every document is right or wrong, else a mean over documents.
        difference: To no routing, paired by document; None of no routing itself.
    """

    task: str
    metric: str
    higher_is_better: bool
    value: Rate | Mean
    difference: Comparison | Mean | None = None


@dataclass(frozen=True)
class TasksUnder:
    """All tasks under one routing.

    Attributes:
        name: Of the routing.
        kind: Whether it is none, the one that is examined, or its control.
    """

    name: str
    kind: ArmKind
    values: tuple[TaskValue, ...]


@dataclass(frozen=True, kw_only=True)
class TaskResults:
    """What else the model can do.

    Attributes:
        harness: Who asked and scored, with its version.
        limit: Documents of each task at most; None for all.
        chat: Whether in the model's chat template.
        requests: Under each routing.
        arms: No routing first.
        left_out: Metrics that say nothing of a single document, so that nothing can be paired.
    """

    harness: str
    limit: int | None
    chat: bool
    requests: int
    arms: tuple[TasksUnder, ...]
    left_out: tuple[str, ...] = ()


# ---------------------------------------------------------------------- asking


@dataclass(frozen=True)
class Arm:
    """A routing under which tasks are solved."""

    name: str
    kind: ArmKind
    routing: Routing = None


NO_ROUTING = Arm("no routing", "none")


class TaskPlan(Protocol):
    """What the plans of jobs say of tasks.

    Attributes:
        utility: Names of tasks; several may stand in one, with commas between them.
        utility_limit, utility_chat: As in `Tasks`.
    """

    @property
    def utility(self) -> tuple[str, ...]: ...

    @property
    def utility_limit(self) -> int | None: ...

    @property
    def utility_chat(self) -> bool: ...


@dataclass(frozen=True)
class TaskStage:
    """Tasks that are ready to be solved; made by `prepare_tasks` before anything is asked.

    Attributes:
        requests: Under each routing.
    """

    tasks: Tasks
    plan: TaskPlan
    requests: int

    def solve(self, bench: Bench[Any], arms: Sequence[Arm]) -> TaskResults:
        """Solve all tasks as the model is, and under each of these routings."""
        found: list[tuple[Arm, list[Outcomes]]] = []
        every = [NO_ROUTING, *arms]
        with bench.stage("tasks", "Tasks", self.requests * len(every)) as steps:
            for arm in every:
                found.append((arm, self.tasks.solve(bench.engine, arm.routing, steps.under(f"tasks/{arm.name}"))))
        plain = found[0][1]
        return TaskResults(
            harness=self.tasks.version,
            limit=self.plan.utility_limit,
            chat=self.plan.utility_chat,
            requests=self.requests,
            arms=tuple(TasksUnder(arm.name, arm.kind, values_of(outcomes, plain, arm)) for arm, outcomes in found),
            left_out=tuple(self.tasks.left_out),
        )


def refuse_unknown_tasks(plan: TaskPlan, folder: TaskFolder | None) -> None:
    """Refuse tasks where lm-eval is not installed, and a folder of tasks of which none is named.

    Raises:
        UsageError, UnsupportedEnvironment: See above.
    """
    if plan.utility:
        _integration()
    elif folder is not None:
        raise UsageError("--utility-tasks names a folder and --utility no task of it", "Give --utility NAME as well")


def prepare_tasks(bench: Bench[Any], plan: TaskPlan, folder: TaskFolder | None, seed: int) -> TaskStage | None:
    """Read the tasks that a plan names, and say what they will ask; None if it names none.

    Raises:
        UsageError, DataError, RunError, UnsupportedEnvironment: They cannot be solved here.
    """
    names = list(dict.fromkeys(name for given in plan.utility for name in given.split(",") if name))
    if not names:
        return None
    place = folder.place() if folder is not None else None
    tasks = _integration().Tasks(names, place, limit=plan.utility_limit, chat=plan.utility_chat, seed=seed)
    requests = tasks.requests(bench.engine)
    bench.say(f"Tasks ({', '.join(names)}): {requests:,} requests under each routing, the untouched model's among them")
    return TaskStage(tasks, plan, requests)


def _integration() -> Any:
    try:
        import pointsman.integrations.lm_eval as integration
    except ImportError as error:
        raise UnsupportedEnvironment(f"--utility needs lm-eval, which is not here ({error})", INSTALL) from error
    return integration


# ---------------------------------------------------------------------- what it comes to


def values_of(outcomes: Sequence[Outcomes], plain: Sequence[Outcomes], arm: Arm) -> tuple[TaskValue, ...]:
    """Each metric with its difference to the model as it is."""
    found = []
    for under, untouched in zip(outcomes, plain, strict=True):
        right_or_wrong = {*under.values, *untouched.values} <= {0.0, 1.0}
        difference: Comparison | Mean | None = None
        if arm.kind != "none" and right_or_wrong:
            difference = compare([v == 1 for v in under.values], [v == 1 for v in untouched.values])
        elif arm.kind != "none":
            difference = Mean.of([a - b for a, b in zip(under.values, untouched.values, strict=True)])
        value = Rate.of([v == 1 for v in under.values]) if right_or_wrong else Mean.of(under.values)
        found.append(
            TaskValue(
                task=under.task,
                metric=under.metric,
                higher_is_better=under.higher_is_better,
                value=value,
                difference=difference,
            )
        )
    return tuple(found)


def claims_on_tasks(results: TaskResults | None) -> list[Claim]:
    """Holds if no task may have lost more than `MARGIN`, interval and all; fails if one surely has.

    A task is judged by its first rate that is better when it is higher. Nothing where no task was asked for.
    """
    if results is None:
        return []
    claim, points = ("still_solves_tasks", "It still solves tasks"), f"{100 * MARGIN:.0f} points"
    lost: list[tuple[TaskValue, Comparison]] = []
    examined = next(arm for arm in results.arms if arm.kind == "routing")
    for value in examined.values:
        counted = value.higher_is_better and isinstance(value.difference, Comparison) and value.difference.n
        if counted and value.task not in [before.task for before, _ in lost]:
            assert isinstance(value.difference, Comparison)
            lost.append((value, value.difference))
    if not lost:
        return [Claim.not_measured(*claim, "no task has a rate that is right or wrong document by document")]
    worst, difference = min(lost, key=lambda found: found[1].low)
    beyond = [value.task for value, found in lost if found.high < -MARGIN]
    verdict: ClaimVerdict = "fails" if beyond else "holds" if difference.low > -MARGIN else "in doubt"
    because = {
        "holds": f"no interval of what a task loses reaches beyond {points}",
        "in doubt": f"the interval of what {worst.task} loses reaches beyond {points}",
        "fails": f"the interval of what {', '.join(beyond)} loses lies wholly beyond {points}",
    }[verdict]
    if beyond:
        worst, difference = min((found for found in lost if found[0].task in beyond), key=lambda found: found[1].high)
    plain = next(v for v in results.arms[0].values if (v.task, v.metric) == (worst.task, worst.metric))
    found = Figure(f"{worst.task} ({worst.metric}), {examined.name}", worst.value)
    return [Claim(*claim, verdict, because, found, Figure("no routing", plain.value), difference)]
