"""The `gpu` fixture: races on the GPU and keeps their rows; a row whose own contender failed fails the test, later.

``HDXRAY_BENCH=quick`` takes fewer samples and leaves out what compiles for long; ``HDXRAY_BENCH_SECONDS`` is the time
after which no further GPU case begins.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from harness.cases import CASES
from harness.gpu import CudaClock, input_sets, l2_bytes, limits, rate
from harness.race import SAMPLE_SECONDS, Contender, Outcome, race
from harness.record import Comparison

BEGIN = time.monotonic()
STEP_SECONDS = 0.1  # of steps in a row, so that the host may run ahead as it does in training


def quick() -> bool:
    return os.environ.get("HDXRAY_BENCH", "") == "quick"


def out_of_time() -> str | None:
    """Why no further case may begin; None if there is time."""
    allowed = os.environ.get("HDXRAY_BENCH_SECONDS")
    if allowed and time.monotonic() - BEGIN > float(allowed):
        return f"out of time: HDXRAY_BENCH_SECONDS={allowed}"
    return None


class GpuBench:
    """What a GPU benchmark uses: `sets`, `race`, `row`."""

    def __init__(self, benchmark: Any) -> None:
        self.benchmark = benchmark
        self.failures: list[str] = []

    def sets(self, bytes_per_call: int) -> int:
        """Sets of inputs needed so that none waits for its turn in the cache."""
        return input_sets(bytes_per_call, l2_bytes())

    def race(
        self,
        contenders: Sequence[Contender],
        *,
        hold: bool = True,
        check: Callable[[Any, str], float] | None = None,
        tolerance: float = 0.05,
        sets: int = 1,
        warmup: int = 3,
    ) -> dict[str, Outcome]:
        """`race.race` on the GPU, its rounds run by pytest-benchmark (once per test, as it wants it)."""
        limits()  # measured before the contenders' memory is in use

        def rounds(one_round: Callable[[], None], count: int) -> None:
            self.benchmark.pedantic(one_round, rounds=count)

        return race(
            contenders,
            CudaClock(hold),
            check=check,
            tolerance=tolerance,
            rounds=15 if quick() else 60,
            seconds=1.5 if quick() else 6.0,
            warmup=warmup,
            sets=sets,
            sample_seconds=SAMPLE_SECONDS if hold else STEP_SECONDS,
            run=rounds,
        )

    def row(
        self,
        key: str,
        outcomes: dict[str, Outcome],
        ours: str,
        rivals: Sequence[str],
        *,
        flops: float = 0.0,
        nbytes: float = 0.0,
        items: int | None = None,
        extra: dict[str, Any] | None = None,
    ) -> Comparison:
        """Keep the row of a case of `cases.CASES`.

        Args:
            flops: operations of one call of ours; nbytes: bytes it must move. For the rate, as shares of the limits.
            items: images of one call, for images a second.
        """
        case, mine = CASES[key], outcomes[ours]
        found = {"limits": limits(), **(extra or {})}
        if mine.samples:
            found["rate"] = rate(mine.median, limits(), flops, nbytes)
        if items:
            found["images"] = items
        return self.keep(
            Comparison.of(case.bench, case.title, outcomes, ours, rivals, bar=case.bar, extra=found),
        )

    def values(
        self,
        key: str,
        ours: float | None,
        rival: float | None,
        rival_name: str,
        unit: str,
        extra: dict[str, Any] | None = None,
        failed: str | None = None,
        rival_failed: str | None = None,
    ) -> Comparison:
        """Keep figures that are no times (peak memory, a time at the measured limit); less is better."""
        case = CASES[key]
        mine, theirs = [[v] if v is not None else [] for v in (ours, rival)]
        return self.keep(
            Comparison(
                case.bench,
                case.title,
                mine,
                theirs,
                rival_name,
                unit=unit,
                bar=case.bar,
                device="cuda",
                extra=extra or {},
                failed=failed,
                rival_failed=rival_failed,
            )
        )

    def keep(self, comparison: Comparison) -> Comparison:
        path = comparison.save()
        print(f"\n{comparison.told()} -> {path}")
        for contender in comparison.extra.get("contenders", []):
            said = contender.get("failed") or f"{contender['median'] * 1e3:.4g} ms"
            print(f"    {contender['name']}: {said} [set-up {contender['setup_seconds']} s]")
        if not comparison.ours:
            self.failures.append(f"{comparison.case}: {comparison.failed}")
        return comparison

    def finish(self) -> None:
        """Fail, now that the rows are kept, if ours could not be measured."""
        if self.benchmark.stats is None:  # every contender failed: pytest-benchmark wants something timed
            self.benchmark.pedantic(lambda: None, rounds=1)
        if self.failures:
            pytest.fail("; ".join(self.failures), pytrace=False)
