"""Live probes: one at a time on a thread of its own, a few waiting, with classification always first.

A probe takes the device for a chunk of one gradient step, gives it back, and checks that its caller is still
there. When its time is almost over it stops searching, judges its candidates, and answers.
"""

import asyncio
import functools
import itertools
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from robustclip.attacks.events import Meter
from robustclip.defenses import AnyDefense
from robustclip.deployed import DeployedClassifier, deploy
from robustclip.errors import DeadlineExceeded, ProbeTooExpensive, RobustClipError
from robustclip.models.labels import check_labels
from robustclip.models.scoring import outcomes, scoring_for
from robustclip.probing.attacker import sources_among
from robustclip.probing.events import ProbeEvent, ProbeFinished
from robustclip.probing.options import ProbeOptions
from robustclip.probing.plan import charged_passes, wants_sources
from robustclip.probing.run import events
from robustclip.probing.verdict import worst
from robustclip.reports.report import ProbeReport, VerdictValue
from robustclip.threat import Linf, radius_text
from service.config import ProbeSettings
from service.engine import Engine
from service.leave import Leave
from service.loaded import LoadedSet
from service.problems import Problem, as_problem, invalid
from service.schemas import MAX_PROBE_SECONDS, ProbeRequest
from service.timing import Timing

Tell: TypeAlias = Callable[
    [int, ProbeEvent], None
]  # (which report, what happened), on the probe's own thread

_JUDGING = (
    0.1,
    3.0,
)  # share of a caller's patience that is reserved for judging, and the most of it in seconds


class Probed(NamedTuple):
    """The reports, and the prompt set and defense of each report that was not begun in time."""

    reports: list[ProbeReport]
    missing: list[tuple[str, tuple[AnyDefense, ...]]]

    @property
    def verdict(self) -> VerdictValue:
        """The worst verdict; a missing report is inconclusive."""
        value = worst(self.reports)
        return "inconclusive" if self.missing and value != "broken" else value


@dataclass(frozen=True, eq=False)
class Admitted:
    """A valid and affordable request; `deadline` None: `seconds` count from when the probe starts."""

    request: ProbeRequest
    options: ProbeOptions
    victims: list[DeployedClassifier]
    seconds: float
    deadline: float | None


class ProbeRunner:
    """Runs probes against an engine's own classifier."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._settings = engine.settings.probe
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="probe")
        self._pending = 0
        self._closing = threading.Event()

    @property
    def pending(self) -> int:
        """Probes that run or wait."""
        return self._pending

    def close(self) -> None:
        """Cancel what runs and what waits."""
        self._closing.set()
        self._thread.shutdown(cancel_futures=True)

    async def run(self, request: ProbeRequest, timing: Timing) -> Probed:
        """A report for every prompt set and defense, for a caller who waits. Cancelling the call cancels the
        probe.
        """
        return await self.attack(await self.admit(request), timing)

    async def admit(self, request: ProbeRequest, *, job: bool = False) -> Admitted:
        """Check all that can be checked before work; a job may cost more, and its time starts when it does.
        Raises Problem and RobustClipError.
        """
        started = time.monotonic()
        options = request.options()
        cap = self._settings.job_charged_passes if job else self._settings.charged_passes
        victims = await self._victims(request, options, cap)
        if self._pending > self._settings.queue:
            raise Problem(
                "queue-full", f"{self._pending} probes are waiting or running.", headers={"Retry-After": "5"}
            )
        seconds = patience_seconds(request, self._settings, job=job)
        return Admitted(request, options, victims, seconds, None if job else started + seconds)

    async def attack(
        self, admitted: Admitted, timing: Timing, tell: Tell = lambda index, event: None
    ) -> Probed:
        """Attack in turn. Cancelling the call cancels the probe."""
        cancelled = threading.Event()
        self._pending += 1
        try:
            work = functools.partial(self._work, admitted, cancelled, timing, tell)
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        finally:
            cancelled.set()
            self._pending -= 1

    async def _victims(
        self, request: ProbeRequest, options: ProbeOptions, cap: int
    ) -> list[DeployedClassifier]:
        """The decisions to attack. Raises ProbeTooExpensive if a report would cost more than `cap`."""
        engine = self._engine
        names = request.prompt_sets or (engine.settings.store.default_set,)
        if len(names) * len(request.defenses) > self._settings.reports:
            raise ProbeTooExpensive(
                f"expected at most {self._settings.reports} reports, found {len(names)} prompt sets times "
                f"{len(request.defenses)} defenses.",
                field="prompt_sets",
            )
        self._check_radius(request, options)
        chains = [
            engine.chain(asked, pointer=f"defenses/{index}") for index, asked in enumerate(request.defenses)
        ]
        scoring = scoring_for(engine.clip, request.scoring)
        check_labels(outcomes(request.labels, scoring))
        sets = [await self._find(name, f"#/prompt_sets/{index}") for index, name in enumerate(names)]
        victims = [
            deploy(
                engine.clip,
                loaded.prompt_set,
                request.labels,
                defense=chain,
                encoder=engine.encoder,
                # computed on the probe's own thread, once the probe is known to be affordable
                text=functools.partial(engine.text.of, loaded, request.labels),
                scoring=scoring,
            )
            for loaded, chain in itertools.product(sets, chains)
        ]
        for victim in victims:
            cost = charged_passes(victim, options, sources=len(_sources(victims, victim, options)))
            if cost > cap:
                votes = 0 if options.certify is None else options.certify.n
                field = (
                    "attacks"
                    if request.attacks is not None
                    else "minimal"
                    if request.minimal
                    else "preset"
                    if request.preset
                    else "steps"
                )
                field = "certify/n" if votes > cost - votes else field
                raise ProbeTooExpensive(
                    f"a report would cost {cost} charged passes, at most {cap} are allowed.", field=field
                )
        return victims

    async def _find(self, name: str, pointer: str) -> LoadedSet:
        try:
            return await self._engine.find(name)
        except RobustClipError as error:
            raise as_problem(error).at(pointer) from error

    def _check_radius(self, request: ProbeRequest, options: ProbeOptions) -> None:
        longest = math.sqrt(3) * self._engine.clip.image_size
        for index, attack in enumerate(options.attacks):
            ball = attack.ball
            limit = self._settings.radius if isinstance(ball, Linf) else self._settings.radius * longest
            if not 0 < ball.radius <= limit:
                pointer = "#/eps" if request.attacks is None else f"#/attacks/{index}/ball/radius"
                allowed = f"expected more than 0 and at most {radius_text(limit, ball.kind)}"
                raise invalid(pointer, f"{allowed}, found {radius_text(ball.radius, ball.kind)}.")

    def _work(self, admitted: Admitted, cancelled: threading.Event, timing: Timing, tell: Tell) -> Probed:
        engine, metrics = self._engine, self._engine.metrics
        leave = Leave(
            engine.device,
            self._settings.chunk_rows,
            admitted.deadline or time.monotonic() + admitted.seconds,
            cancelled,
            self._closing,
        )
        leave.check()
        pixels, _ = engine.pixels(admitted.request.image)
        pixels = pixels.to(engine.clip.device)
        searching = leave.deadline - min(_JUDGING[0] * admitted.seconds, _JUDGING[1])
        probed = Probed([], [])
        for index, victim in enumerate(admitted.victims):
            started = time.perf_counter()
            probe_events = events(
                victim,
                pixels,
                admitted.options,
                access=leave.access,
                sources=_sources(admitted.victims, victim, admitted.options),
                meter=Meter(deadline=searching, cancelled=leave.cancelled),
            )
            try:
                report = _followed(probe_events, functools.partial(tell, index))
            except DeadlineExceeded:
                leave.check_wanted()
                if not probed.reports:
                    raise
                probed.missing.append((victim.prompt_set, victim.defense))
                continue
            leave.check_wanted()
            probed.reports.append(report)
            seconds = time.perf_counter() - started
            metrics.probes.observe(seconds)
            timing.stages["probe"] = timing.stages.get("probe", 0.0) + seconds
            for record in report.attacks:
                metrics.probe_runs.labels(
                    record.kind, record.knowledge, report.verdict.value, report.victim.prompt_set
                ).inc()
        return probed


def patience_seconds(request: ProbeRequest, settings: ProbeSettings, *, job: bool = False) -> float:
    """How long a caller waits: as the request says, else the time of so many reports. Nobody waits for a job,
    so it has its own time.
    """
    if request.deadline_ms is not None:
        return request.deadline_ms / 1000
    if job:
        return settings.job_seconds
    reports = len(request.prompt_sets or ("the default",)) * len(request.defenses)
    return min(settings.report_seconds * reports, MAX_PROBE_SECONDS)


def _sources(
    victims: Sequence[DeployedClassifier], victim: DeployedClassifier, options: ProbeOptions
) -> tuple[DeployedClassifier, ...]:
    return sources_among(victims, victim) if wants_sources(options) else ()


def _followed(probe_events: Iterator[ProbeEvent], tell: Callable[[ProbeEvent], None]) -> ProbeReport:
    """The report at the end; `tell` gets each event."""
    for event in probe_events:
        tell(event)
        if isinstance(event, ProbeFinished):
            return event.report
    raise AssertionError("a probe ends with its report")
