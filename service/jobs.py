"""Probes in the background: their state, events and results. All in memory; a restart forgets them.

A job's events can be read from any number on, as often as wanted, while it runs and afterwards.
"""

import asyncio
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple, TypeAlias

from robustclip.errors import Cancelled
from robustclip.probing.events import AttackProgress, ProbeEvent, ProbeFinished
from service.probing import Admitted, Probed, ProbeRunner
from service.problems import Problem, as_problem
from service.timing import Timing

JobState: TypeAlias = Literal["queued", "running", "done", "failed", "cancelled", "expired"]

# (result, the job's id, milliseconds by stage) -> the body of the answer
Answer: TypeAlias = Callable[[Probed, str, Mapping[str, float]], Mapping[str, Any]]

KEPT_EVENTS = 512  # of one job: older ones are forgotten
_BETWEEN_PROGRESS_SECONDS = 0.25


class JobEvent(NamedTuple):
    """One event of a job; numbers rise by 1."""

    number: int
    name: str
    data: str


@dataclass(eq=False)
class Job:
    """One probe. Only the event loop touches it."""

    id: str
    runs: int
    created: str
    state: JobState = "queued"
    finished: str | None = None
    ended: float = 0.0  # time.monotonic()
    runs_done: int = 0
    result: Mapping[str, Any] | None = None
    problem: Mapping[str, Any] | None = None
    events: deque[JobEvent] = field(default_factory=lambda: deque[JobEvent](maxlen=KEPT_EVENTS))
    task: "asyncio.Task[None] | None" = None
    _number: int = 0
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def over(self) -> bool:
        return self.state not in ("queued", "running")

    def tell(self, name: str, data: str) -> None:
        self._number += 1
        self.events.append(JobEvent(self._number, name, data))
        self._changed.set()
        self._changed = asyncio.Event()

    async def follow(self, after: int, *, patience_seconds: float) -> AsyncIterator[JobEvent | None]:
        """The events above number `after`, until the job is over; None after so many seconds without one."""
        while True:
            changed, over = self._changed, self.over
            fresh = [event for event in self.events if event.number > after]
            for event in fresh:
                after = event.number
                yield event
            if over:
                return
            if not fresh:
                try:
                    await asyncio.wait_for(changed.wait(), patience_seconds)
                except TimeoutError:
                    yield None


class Jobs:
    """The jobs of one service; at most `kept` of them, results for `result_seconds`."""

    def __init__(self, probes: ProbeRunner, *, kept: int, result_seconds: float) -> None:
        self._probes = probes
        self._kept = kept
        self._result_seconds = result_seconds
        self._jobs: dict[str, Job] = {}

    def start(self, admitted: Admitted, answer: Answer) -> Job:
        """Run an admitted request; the oldest jobs that are over make room.

        Raises Problem `queue-full` where every job that is remembered still runs.
        """
        self._expire()
        for old in [job for job in self._jobs.values() if job.over][
            : max(0, len(self._jobs) - self._kept + 1)
        ]:
            del self._jobs[old.id]
        if len(self._jobs) >= self._kept:
            raise Problem(
                "queue-full", f"{len(self._jobs)} jobs are running or waiting.", headers={"Retry-After": "5"}
            )
        job = Job(f"prb_{secrets.token_hex(12)}", len(admitted.victims), _now())
        self._jobs[job.id] = job
        job.task = asyncio.create_task(self._run(job, admitted, answer))
        return job

    def find(self, id: str) -> Job:
        """Raises Problem `unknown-job`."""
        self._expire()
        job = self._jobs.get(id)
        if job is None:
            raise Problem("unknown-job", "there is no such job, or it was forgotten.")
        return job

    def cancel(self, id: str) -> Job:
        """Stop a job at its next step, or remove it if it is over."""
        job = self.find(id)
        if job.over:
            del self._jobs[id]
        elif job.task is not None:
            job.task.cancel()
        return job

    async def _run(self, job: Job, admitted: Admitted, answer: Answer) -> None:
        timing, loop = Timing(), asyncio.get_running_loop()
        thinned = _Thinned()

        def tell(run: int, event: ProbeEvent) -> None:  # on the probe's thread
            if thinned.wanted(event):
                loop.call_soon_threadsafe(self._hear, job, run, event)

        try:
            probed = await self._probes.attack(admitted, timing, tell)
            job.result = answer(probed, job.id, timing.milliseconds())
            self._end(job, "done", f'{{"verdict":"{probed.verdict}"}}')
        except (asyncio.CancelledError, Cancelled):
            self._end(job, "cancelled", "{}")
        except Exception as error:
            problem = as_problem(error)
            job.problem = problem.body(instance=f"/probe/jobs/{job.id}", request_id=job.id)
            self._end(job, "failed", f'{{"code":"{problem.code}"}}')

    def _hear(self, job: Job, run: int, event: ProbeEvent) -> None:
        if job.over:
            return
        job.state = "running"
        name = event.event
        if isinstance(event, ProbeFinished):
            name, job.runs_done = "run", job.runs_done + 1
        job.tell(name, f'{{"run":{run},{event.model_dump_json(exclude={"event"})[1:]}')

    def _end(self, job: Job, state: JobState, data: str) -> None:
        job.state, job.finished, job.ended = state, _now(), time.monotonic()
        job.tell(state, data)

    def _expire(self) -> None:
        """Forget results that are too old."""
        for job in self._jobs.values():
            if job.over and job.state != "expired" and time.monotonic() - job.ended > self._result_seconds:
                job.state, job.result, job.problem = "expired", None, None
                job.events.clear()


class _Thinned:
    """Passes on progress four times a second, and every other event."""

    def __init__(self) -> None:
        self._due = 0.0

    def wanted(self, event: ProbeEvent) -> bool:
        if not isinstance(event, AttackProgress):
            return True
        if time.monotonic() < self._due:
            return False
        self._due = time.monotonic() + _BETWEEN_PROGRESS_SECONDS
        return True


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
