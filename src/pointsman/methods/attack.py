"""`Attack`: the protocol of an attack of another package, and how a name on the command line becomes one.

An audit tries every attack that is named (``pointsman audit ... --attack NAME:key=value``) on the behaviours that it
tests, beside the attack's own control, and reports both like its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from pointsman.data.types import Behaviour
from pointsman.engine.types import Engine
from pointsman.errors import UsageError
from pointsman.judges.types import Judge
from pointsman.methods.attempts import Attempt
from pointsman.methods.steps import Steps
from pointsman.registry import attacks, read_name, write_name


@runtime_checkable
class Attack(Protocol):
    """A way to make a model answer what it refuses.

    Registered under ``pointsman.attacks``, as a dataclass of its parameters.

    Attributes:
        name: As registered.
    """

    @property
    def name(self) -> str: ...

    def attack(
        self,
        engine: Engine,
        behaviours: Sequence[Behaviour],
        judge: Judge,
        *,
        max_new_tokens: int,
        seed: int,
        steps: Steps,
    ) -> list[Attempt]:
        """One judged answer to every behaviour, in order, under whatever routing the attack finds.

        Args:
            steps: Where units are remembered: whatever is computed goes through ``steps.unit``, so that a run resumes.
            seed: Of all that is drawn (`methods.steps.stream`).
        """
        ...

    def control(self) -> Attack | None:
        """The same effort without the idea, which could refute it; None if there is none."""
        ...


def make_attack(written: str) -> Attack:
    """The attack that a user names, with its parameters.

    Raises:
        UnknownName: Nobody registered it.
        UsageError: It has no such parameters, or what is registered is no attack.
    """
    name, parameters = read_name(written, "attack")
    made: Any = attacks.make(name, parameters)
    if not isinstance(made, Attack) or made.name != name:
        raise UsageError(
            f"What is registered as the attack {name} is none of this version of Pointsman",
            "Install a version of it that has the verbs attack and control, and this name",
        )
    return made


def written_attack(attack: Attack) -> str:
    """What `make_attack` makes it of."""
    return write_name(attack.name, attacks.chosen(attack))
