"""What the simulations share: their options, a table that grows as they go, and the results as files."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path


def run_simulation(
    description: str,
    settings: Sequence,
    simulate: Callable[[int, argparse.Namespace], dict],
    table: Callable[[list[tuple]], str],
    tests: int,
) -> None:
    """Simulate each setting; write ``table.md`` and ``results.json`` into ``--out``.

    Args:
        description: of the program.
        settings: dataclasses, a row each.
        simulate: takes the number of a setting and the options ``tests``, ``bootstraps`` and ``seed``.
        table: Markdown of pairs of a setting and what was found, a line a pair at its end.
        tests: default of ``--tests`` and ``--bootstraps``.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tests", type=int, default=tests, help="test sets a row")
    parser.add_argument("--bootstraps", type=int, default=tests)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    began, results = time.perf_counter(), []
    for number, setting in enumerate(settings):
        results.append((setting, simulate(number, options)))
        print(table(results[-1:]).splitlines()[-1], flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    minutes = (time.perf_counter() - began) / 60
    told = f"{options.tests} test sets a row, {options.bootstraps} draws, {minutes:.1f} minutes"
    (options.out / "table.md").write_text(f"{table(results)}\n\n{told}\n", encoding="utf-8")
    rows = [{**vars(setting), **found} for setting, found in results]
    (options.out / "results.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(told)
