"""Runs stages of a long check one after the other, each with its own time limit and log; none stops the next ones.

A stage is a command. It passes, fails (with a reason), runs out of time, or is not run (a tool is missing, a stage that
it needs did not pass, the whole check's time is spent). Standard library only: this runs before anything is installed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PASS, FAIL, TIMEOUT, NOT_RUN = "PASS", "FAIL", "TIMEOUT", "NOT RUN"
GRACE = 5.0  # seconds between asking a process to end and ending it
TAIL_LINES = 25
SHOWN = 300  # characters of a command


@dataclass
class Stage:
    """One command of the check.

    Attributes:
        limit: seconds it may take.
        tool: program that it needs on PATH, beside the command's own.
        needs: names of stages that must have passed before.
        blocked: why it cannot run here at all, known beforehand.
        optional: whether the check passes without it.
        prepare: called when the stage starts, so that a stage that is only planned changes nothing.
        verdict: given the exit status, says (passed, remark); left out, status 0 passes.
    """

    name: str
    command: Sequence[str]
    limit: float
    env: dict[str, str] = field(default_factory=dict)
    tool: str | None = None
    needs: tuple[str, ...] = ()
    blocked: str | None = None
    optional: bool = False
    prepare: Callable[[], None] | None = None
    verdict: Callable[[int], tuple[bool, str]] | None = None


@dataclass
class Result:
    """What became of a stage."""

    name: str
    status: str
    seconds: float = 0.0
    remark: str = ""
    optional: bool = False

    @property
    def fails_the_check(self) -> bool:
        return self.status != PASS and not self.optional


@dataclass
class _Running:
    stage: Stage
    process: subprocess.Popen
    begin: float
    limit: float


class Runner:
    """Runs stages and remembers their results.

    Args:
        folder: where commands run.
        logs: where ``<name>.log`` of each goes.
        total: seconds for all stages together.
        passed_before: stages that count as passed though they are not part of this run.
        say: prints a line.
    """

    def __init__(
        self,
        folder: Path,
        logs: Path,
        total: float,
        passed_before: Sequence[str] = (),
        say: Callable[[str], None] = print,
    ) -> None:
        self.folder, self.logs, self.say = folder, logs, say
        self.results: list[Result] = []
        self._passed = set(passed_before)
        self._end = time.monotonic() + total
        self._begin = time.monotonic()
        for path in (folder, logs):
            path.mkdir(parents=True, exist_ok=True)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._begin

    def run(self, *stages: Stage) -> list[Result]:
        """Run the stages at the same time and wait for all of them."""
        done, running = [], []
        for stage in stages:
            reason = self._why_not(stage)
            if reason:
                done.append(self._keep(Result(stage.name, NOT_RUN, 0.0, reason, stage.optional)))
                continue
            try:
                running.append(self._start(stage))
            except OSError as error:
                done.append(self._keep(Result(stage.name, FAIL, 0.0, f"{error}", stage.optional)))
        try:
            while running:
                time.sleep(0.05)
                for job in list(running):
                    result = self._look(job)
                    if result:
                        running.remove(job)
                        done.append(self._keep(result))
        finally:  # an interrupt, too, leaves no process behind
            for job in running:
                _end(job.process)
        return done

    def log(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    def tail(self, name: str, lines: int = TAIL_LINES) -> str:
        """Last lines of a stage's log."""
        path = self.log(name)
        if not path.exists():
            return ""
        return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])

    def table(self) -> str:
        """Stages with their status, seconds and remarks."""
        width = max([len(r.name) for r in self.results], default=0)
        rows = []
        for r in self.results:
            remark = " ".join(r.remark.split()) + (" (optional)" if r.optional and r.status != PASS else "")
            rows.append(f"{r.name:<{width}}  {r.status:<7}  {r.seconds:6.1f} s  {remark}".rstrip())
        return "\n".join([*rows, f"{'all':<{width}}  {'':<7}  {self.seconds:6.1f} s"])

    # --- one stage ----------------------------------------------------------------------------------------------------
    def _why_not(self, stage: Stage) -> str | None:
        if stage.blocked:
            return stage.blocked
        missing = [name for name in stage.needs if name not in self._passed]
        if missing:
            return f"needs what did not pass: {', '.join(missing)}"
        path = stage.env.get("PATH", os.environ.get("PATH"))
        for tool in (stage.tool, stage.command[0]):
            if tool and not shutil.which(tool, path=path):
                return f"{tool} was not found on PATH"
        if self._end - time.monotonic() < 1:
            return "no time is left"
        return None

    def _start(self, stage: Stage) -> _Running:
        limit = min(stage.limit, self._end - time.monotonic())
        shown = " ".join(" ".join(stage.command).split())
        if stage.prepare:
            stage.prepare()
        self.say(f"--- {stage.name} (at most {limit:.0f} s): {shown[:SHOWN] + (' …' if shown[SHOWN:] else '')}")
        with self.log(stage.name).open("wb") as log:
            process = subprocess.Popen(
                list(stage.command),
                cwd=self.folder,
                env={**os.environ, **stage.env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # a group of its own, so that its children can be ended with it, but in our session: what ends that from
                # outside ends them too
                preexec_fn=os.setpgrp,
            )
        return _Running(stage, process, time.monotonic(), limit)

    def _look(self, job: _Running) -> Result | None:
        seconds, status = time.monotonic() - job.begin, job.process.poll()
        if status is None:
            if seconds < job.limit:
                return None
            _end(job.process)
            return Result(job.stage.name, TIMEOUT, seconds, f"took more than {job.limit:.0f} s", job.stage.optional)
        try:
            passed, remark = job.stage.verdict(status) if job.stage.verdict else (status == 0, "")
        except Exception as error:
            passed, remark = False, f"its result cannot be read ({type(error).__name__}: {error})"
        if not passed and status:
            remark = f"exit status {status}" + (f"; {remark}" if remark else "")
        return Result(job.stage.name, PASS if passed else FAIL, seconds, remark, job.stage.optional)

    def _keep(self, result: Result) -> Result:
        self.results.append(result)
        if result.status == PASS:
            self._passed.add(result.name)
        self.say(f"    {result.name}: {result.status}, {result.seconds:.1f} s {result.remark}".rstrip())
        if result.status in (FAIL, TIMEOUT) and self.tail(result.name):
            self.say(f"    the end of {self.log(result.name)}:\n{self.tail(result.name)}")
        return result


def _end(process: subprocess.Popen) -> None:
    """End a process and all of its children, first politely."""
    _signal(process, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE)
    _signal(process, signal.SIGKILL)  # also children that outlived it
    with contextlib.suppress(subprocess.TimeoutExpired):  # stuck in a driver: the next stages go on without it
        process.wait(GRACE)


def _signal(process: subprocess.Popen, kind: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, kind)


def pytest_verdict(report: Path, skips_fail: bool) -> Callable[[int], tuple[bool, str]]:
    """Verdict of a pytest stage that writes `report` (JUnit XML): something must have passed, not only been skipped.

    Args:
        report: the stage's `prepare` removes that of an earlier run.
        skips_fail: whether a skipped test fails the stage.
    """

    def verdict(status: int) -> tuple[bool, str]:
        if not report.exists():
            return False, "pytest wrote no report"
        cases = list(ElementTree.parse(report).getroot().iter("testcase"))
        bad = [c for c in cases if c.find("failure") is not None or c.find("error") is not None]
        skipped = [c for c in cases if c.find("skipped") is not None]
        passed = len({_name(c) for c in cases} - {_name(c) for c in bad} - {_name(c) for c in skipped})
        remark = f"{passed} passed, {len({_name(c) for c in bad})} failed, {len(skipped)} skipped"
        if bad:
            remark += f"; first: {_name(bad[0])}"
        elif skipped and (skips_fail or not passed):
            remark += f"; {skipped[0].find('skipped').get('message', '')}"
        return status == 0 and passed > 0 and not (skips_fail and skipped), remark

    return verdict


def _name(case: ElementTree.Element) -> str:
    return f"{case.get('classname', '')}.{case.get('name', '')}"
