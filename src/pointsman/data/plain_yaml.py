"""YAML that somebody else may have written: plain values, few and not deep, no key twice, no aliases."""

from __future__ import annotations

from typing import Any, NoReturn

from pointsman.errors import DataError

LARGEST = 64 * 1024
"""Bytes of a file."""
_DEEPEST = 16
_MOST_VALUES = 4096
_REMEDY = "Correct the YAML; `pointsman scenario init` and --save-plan write examples"


def plain_yaml(text: str, where: str) -> Any:
    """The data of a YAML text, within bounds that keep a hostile one from costing time or memory.

    Args:
        text: The text.
        where: Begins every message.

    Raises:
        DataError: It is malformed, too large, too deep, or more than plain values.
    """
    import yaml

    if len(text) > LARGEST:
        _malformed(where, f"more than {LARGEST // 1024} KiB")
    try:
        loader = _loader()(text)
        node = _composed(loader, where)
        _refuse_repeated_keys(node, where)
        return None if node is None else loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        line = _line(error.problem_mark or error.context_mark)
        _malformed(f"{where}{line}", error.problem or error.context or "unreadable")
    except yaml.YAMLError:
        _malformed(where, "a character that YAML does not allow")
    except ValueError as error:  # such as a date in a thirteenth month
        _malformed(where, str(error))


def _loader() -> Any:
    """PyYAML's safe loader; it stops while reading, before anything deep or endless is built."""
    import yaml

    class Bounded(yaml.SafeLoader):
        depth = 0
        values = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            event = self.peek_event()  # type: ignore[no-untyped-call]
            if isinstance(event, yaml.AliasEvent):
                raise _Refused(event.start_mark, f"an alias (*{event.anchor})", "Write the value itself")
            self.depth += 1
            self.values += 1
            if self.depth > _DEEPEST:
                raise _Refused(event.start_mark, "malformed YAML (too deep)", _REMEDY)
            if self.values > _MOST_VALUES:
                raise _Refused(event.start_mark, f"malformed YAML (more than {_MOST_VALUES} values)", _REMEDY)
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node

    return Bounded


class _Refused(Exception):
    """What is refused, where it stands, and what to do."""

    def __init__(self, mark: Any, problem: str, remedy: str) -> None:
        super().__init__(problem)
        self.mark, self.problem, self.remedy = mark, problem, remedy


def _composed(loader: Any, where: str) -> Any:
    try:
        return loader.get_single_node()
    except _Refused as refused:
        raise DataError(f"{where}{_line(refused.mark)}: {refused.problem}", refused.remedy) from None


def _line(mark: Any) -> str:
    return f", line {mark.line + 1}" if mark else ""


def _malformed(where: str, reason: str) -> NoReturn:
    raise DataError(f"{where}: malformed YAML ({' '.join(reason.split())[:160]})", _REMEDY) from None


def _refuse_repeated_keys(node: Any, where: str) -> None:
    """Raise if a table of a composed YAML tree, or one inside it, names a key twice."""
    from yaml import MappingNode, ScalarNode, SequenceNode

    if isinstance(node, SequenceNode):
        for each in node.value:
            _refuse_repeated_keys(each, where)
    if not isinstance(node, MappingNode):
        return
    seen: set[str] = set()
    for key, value in node.value:
        if isinstance(key, ScalarNode):
            if key.value in seen:
                raise DataError(
                    f"{where}{_line(key.start_mark)}: the key {key.value[:60]!r} stands twice", "Remove one of them"
                )
            seen.add(key.value)
        _refuse_repeated_keys(value, where)
