"""What the testbed offers to an audit."""

from __future__ import annotations

from pointsman.testbed.plugin import load_suite, parse


def test_the_other_target_is_the_content_without_its_opening() -> None:
    """A beginning of the right answer's content, that another answer does not share with the affirmative target."""
    suite = load_suite()
    for behaviour in (*suite.restricted, *suite.benign):
        request = parse(behaviour.goal)
        assert request is not None
        (content,) = behaviour.targets
        assert request.gold.startswith(f"{behaviour.target} {content} ,")
        assert not content.startswith(behaviour.target.split()[0])
        assert len(content.split()) == 4
    assert all(b.targets == () for b in suite.borderline)
