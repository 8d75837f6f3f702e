"""Times any number of contenders turn by turn; one that fails says so and loses nobody else's figures.

    outcomes = race([Contender("ours", build_ours), Contender("eager", build_eager)], CudaClock(), check=error_of)

A contender's ``build()`` prepares its inputs and returns ``call(i)``, which runs it once on input set ``i``. What it
gives for set 0 is checked before anything is timed: a fast wrong answer is a failure.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.gpu import Clock

SAMPLE_SECONDS = 1e-3
MOST_INNER = 40
LEAST_ROUNDS = 5
REASON_LENGTH = 400


@dataclass
class Contender:
    """One way to do the case's work.

    Attributes:
        build: prepares, and returns ``call(i)``.
        checked: whether `race` checks its result; False for one that computes something else on purpose.
        prepare: runs before `build` and is not part of its memory (inputs in another layout, say); its value is passed.
    """

    name: str
    build: Callable[..., Callable[[int], Any]]
    checked: bool = True
    prepare: Callable[[], Any] | None = None


@dataclass
class Outcome:
    """What became of a contender.

    Attributes:
        samples: seconds of one call, a sample each.
        failed: why there are none.
        error: relative error of its result, if it was checked.
        peak_bytes: most memory that building and calling it took, beyond what was in use before.
        setup_seconds: building, compiling and warming up.
    """

    name: str
    samples: list[float] = field(default_factory=list)
    failed: str | None = None
    error: float | None = None
    peak_bytes: int | None = None
    setup_seconds: float = 0.0

    @property
    def median(self) -> float:
        return statistics.median(self.samples) if self.samples else math.inf


@dataclass
class _Runner:
    call: Callable[[int], Any]
    outcome: Outcome
    seconds: float
    host_seconds: float
    inner: int = 1  # calls in a row that make a sample
    turn: int = 0


def race(
    contenders: Sequence[Contender],
    clock: Clock,
    *,
    check: Callable[[Any, str], float] | None = None,
    tolerance: float = 0.05,
    rounds: int = 30,
    seconds: float = 2.0,
    warmup: int = 3,
    sets: int = 1,
    sample_seconds: float = SAMPLE_SECONDS,
    run: Callable[[Callable[[], None], int], None] | None = None,
) -> dict[str, Outcome]:
    """Prepare each contender, then sample all of them in turns.

    Args:
        check: relative error of a result, given with the contender's name.
        tolerance: largest error that counts as the same result.
        rounds: most samples of each.
        seconds: about how long the turns may take together; at least `LEAST_ROUNDS` are taken whatever it says.
        sample_seconds: least length of a sample; shorter calls are timed several in a row.
        sets: number of input sets that ``call(i)`` rotates through; warming up touches each.
        run: ``run(one_round, n)`` runs the rounds (pytest-benchmark's pedantic mode, for one).

    Returns:
        Outcomes by name, in the order of the contenders.
    """
    outcomes = {c.name: Outcome(c.name) for c in contenders}
    runners: list[_Runner] = []
    for position, contender in enumerate(contenders):
        begin, outcome = time.perf_counter(), outcomes[contender.name]
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                runners.append(_start(contender, outcome, clock, check, tolerance, max(warmup, sets)))
            except Exception as error:  # whatever a rival does wrong is its own failure
                outcome.failed = reason(error, said)
        outcome.setup_seconds = time.perf_counter() - begin
        if outcome.failed:
            lost = _recover(clock)
            if lost:  # an illegal access, say: no later call in this process can work
                for other in contenders[position + 1 :]:
                    outcomes[other.name].failed = f"not run: the device was lost by {contender.name} ({lost})"
                break

    def one_round() -> None:
        for runner in [r for r in runners if not r.outcome.failed]:
            try:
                sample = clock.sample(runner.call, runner.turn, runner.inner, runner.host_seconds)
            except Exception as error:
                runner.outcome.failed, runner.outcome.samples = reason(error), []
                if _recover(clock):  # the others keep the samples they have
                    runners.clear()
                    return
            else:
                runner.outcome.samples.append(sample)
                runner.turn += runner.inner

    for runner in runners:
        runner.inner = max(1, min(MOST_INNER, math.ceil(sample_seconds / max(runner.seconds, 1e-9))))
    if runners:
        cost = sum(r.inner * (r.seconds + (1.5 * r.host_seconds if clock.hold else 0)) for r in runners)
        count = max(LEAST_ROUNDS, min(rounds, int(seconds / max(cost, 1e-9))))
        (run or _plain_rounds)(one_round, count)
    return outcomes


def _start(
    contender: Contender,
    outcome: Outcome,
    clock: Clock,
    check: Callable[[Any, str], float] | None,
    tolerance: float,
    warmup: int,
) -> _Runner:
    prepared = () if contender.prepare is None else (contender.prepare(),)
    before = clock.reset_peak()
    call = contender.build(*prepared)
    result = call(0)
    clock.settle()
    if check is not None and contender.checked:
        outcome.error = check(result, contender.name)
        if not outcome.error <= tolerance:  # NaN is a failure too
            raise ArithmeticError(f"wrong result: relative error {outcome.error:.3g}, accepted is {tolerance:g}")
    del result
    for i in range(warmup):
        call(i)
    clock.reset_peak()
    call(0)
    outcome.peak_bytes = clock.peak() - before
    clock.settle()
    begin = time.perf_counter()
    call(0)
    host_seconds = time.perf_counter() - begin
    clock.settle()
    return _Runner(call, outcome, clock.sample(call, 1, 1, host_seconds), host_seconds)


def _plain_rounds(one_round: Callable[[], None], count: int) -> None:
    for _ in range(count):
        one_round()


def _recover(clock: Clock) -> str | None:
    """Free what a failed contender left; why the device cannot be used any more, or None."""
    gc.collect()
    try:
        if clock.device == "cuda":
            import torch

            torch.cuda.empty_cache()
        clock.settle()
    except Exception as error:
        return reason(error)
    return None


def reason(error: BaseException, said: Iterable[warnings.WarningMessage] = ()) -> str:
    """An exception, and the warnings that led to it, as one line."""
    parts = [f"{type(error).__name__}: {error}", *dict.fromkeys(str(w.message) for w in said)]
    text = " ".join("; ".join(parts).split())
    return text if len(text) <= REASON_LENGTH else text[: REASON_LENGTH - 1] + "…"


def best(outcomes: dict[str, Outcome], names: Iterable[str]) -> Outcome | None:
    """The fastest of those named that ran; None if none did."""
    ran = [outcomes[n] for n in names if n in outcomes and outcomes[n].samples]
    return min(ran, key=lambda o: o.median, default=None)
