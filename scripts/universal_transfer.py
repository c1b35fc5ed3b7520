"""evidence/universal-transfer.json: the universal route of each checkpoint, asked of the others of its family.

    python scripts/universal_transfer.py [--work FOLDER]

After the runs guided-... of evidence/plan.yaml, whose routes lie in evidence/work (or FOLDER). 100 requests of the test
split under each route, and under random sets at the same places (one draw). The checkpoints of a family are trained
from different seeds: they have their architecture and data in common, and no weights.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clean import require_clean_tree
from evidence_files import EVIDENCE, write

import pointsman
from pointsman.data.splits import take
from pointsman.methods.universal import Replay
from pointsman.methods.universal_route import UniversalRoute
from pointsman.runs.rates import AttackRates, successes
from pointsman.stats.rates import Rate
from pointsman.testbed.plugin import TestbedJudge, load_suite

FAMILIES = ("olmoe", "qwen2_moe", "deepseek_v3")
ASKED, SEED = 100, 0


def transfer(family: str, routes: Mapping[str, UniversalRoute]) -> list[dict[str, Any]]:
    """Every route on every checkpoint of a family, its own among them."""
    suite = load_suite()
    behaviours = take([b for b in suite.restricted if b.split == "test"], ASKED, SEED)
    clusters = [behaviour.row_cluster for behaviour in behaviours]
    found = []
    for target in routes:
        engine = pointsman.load(f"testbed:{target}")
        for source, route in routes.items():
            answers = Replay(draws=1, max_new_tokens=suite.max_new_tokens).ask(
                engine, behaviours, TestbedJudge(), route, plain=()
            )
            rates = AttackRates.of(answers.routed, SEED)
            random = Rate.of(successes(answers.random[0]), clusters, SEED)
            found.append({
                "family": family, "found_on": source, "asked_of": target, "asr": vars(rates.asr),
                "any_compliance": vars(rates.any_compliance), "random": vars(random),
            })  # fmt: skip
            print(f"{source} -> {target}: {rates.asr.k} of {rates.asr.n}, any {rates.any_compliance.k}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=EVIDENCE / "work", help="folder of the runs")
    work: Path = parser.parse_args().work
    commit = require_clean_tree(EVIDENCE.parent)
    found: list[dict[str, Any]] = []
    for family in FAMILIES:
        names = [family, f"{family}-seed1", f"{family}-seed2"]
        files = {name: work / f"guided-{name}" / "artefacts/universal_route.json" for name in names}
        found += transfer(family, {name: UniversalRoute.load(file) for name, file in files.items()})
    write(EVIDENCE / "universal-transfer.json", {"provenance": {"commit": commit}, "transfer": found}, indent=1)


if __name__ == "__main__":
    main()
