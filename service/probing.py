"""Live probes: one at a time on a thread of their own, a few waiting, each a good neighbour of the classifier it attacks.

A probe takes the device for a chunk of one gradient step, gives it back, and looks whether it is still wanted.
"""

import asyncio
import functools
import itertools
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch

from robustclip.errors import Cancelled, DeadlineExceeded, ProbeTooExpensive, RobustClipError
from robustclip.probe import probe
from robustclip.probe_options import ProbeOptions
from robustclip.probe_plan import charged_passes
from robustclip.report import ProbeReport
from robustclip.threat import Linf, radius_text
from robustclip.types import Classifier, Logits, Pixels, Score, Seeds
from robustclip.victim import Victim
from robustclip.wrappers import guarded
from service.config import ProbeSettings
from service.device import Priority
from service.engine import Engine
from service.loaded import LoadedSet
from service.problems import Problem, as_problem, invalid
from service.schemas import MAX_PROBE_SECONDS, ProbeRequest
from service.timing import Timing


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

    async def run(self, request: ProbeRequest, timing: Timing) -> list[ProbeReport]:
        """A report for every prompt set and defense. Cancelling the call cancels the probe."""
        deadline = time.monotonic() + patience_seconds(request, self._settings)
        options = request.options()
        victims = await self._victims(request, options)
        if self._pending > self._settings.queue:
            raise Problem("queue-full", f"{self._pending} probes are waiting or running.", headers={"Retry-After": "5"})
        cancelled = threading.Event()
        self._pending += 1
        try:
            work = functools.partial(self._work, victims, request, options, _Leave(self._engine, deadline, cancelled, self._closing), timing)
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        finally:
            cancelled.set()
            self._pending -= 1

    async def _victims(self, request: ProbeRequest, options: ProbeOptions) -> list[tuple[LoadedSet, Victim]]:
        """What will be attacked, once all of it was found affordable."""
        engine = self._engine
        names = request.prompt_sets or (engine.settings.store.default_set,)
        if len(names) * len(request.defenses) > self._settings.reports:
            raise ProbeTooExpensive(
                f"expected at most {self._settings.reports} reports, found {len(names)} prompt sets times {len(request.defenses)} defenses.",
                field="prompt_sets",
            )
        self._check_radius(request, options)
        chains = [engine.chain(asked, pointer=f"defenses/{index}") for index, asked in enumerate(request.defenses)]
        sets = [await self._find(name, f"#/prompt_sets/{index}") for index, name in enumerate(names)]
        victims: list[tuple[LoadedSet, Victim]] = []
        for loaded, chain in itertools.product(sets, chains):
            weights = torch.empty(0, engine.clip.embed_dim)  # computed on the probe's own thread, when it is known to be affordable
            victim = Victim(engine.clip, loaded.prompts_for(request.labels), str(loaded.ref), request.labels, weights, chain, serving=engine.encoder)
            cost = charged_passes(victim, options)
            if cost > self._settings.charged_passes:
                raise ProbeTooExpensive(
                    f"a report would cost {cost} charged passes, at most {self._settings.charged_passes} are allowed.", field="steps"
                )
            victims.append((loaded, victim))
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
            if ball.radius > limit:
                pointer = "#/eps" if request.attacks is None else f"#/attacks/{index}/ball/radius"
                raise invalid(pointer, f"expected at most {radius_text(limit, ball.kind)}, found {radius_text(ball.radius, ball.kind)}.")

    def _work(
        self, victims: list[tuple[LoadedSet, Victim]], request: ProbeRequest, options: ProbeOptions, leave: "_Leave", timing: Timing
    ) -> list[ProbeReport]:
        engine, metrics = self._engine, self._engine.metrics
        leave.check()
        pixels, _ = engine.pixels(request.image)
        pixels = pixels.to(engine.clip.device)
        reports: list[ProbeReport] = []
        for loaded, victim in victims:
            started = time.perf_counter()
            weights = engine.text.of(loaded, victim.labels)
            report = probe(replace(victim, weights=weights), pixels, options, guard=self._guard(leave), share=self._share(leave))
            reports.append(report)
            seconds = time.perf_counter() - started
            metrics.probes.observe(seconds)
            timing.stages["probe"] = timing.stages.get("probe", 0.0) + seconds
            for record in report.attacks:
                metrics.probe_runs.labels(record.kind, record.knowledge, report.verdict.value, report.victim.prompt_set).inc()
        return reports

    def _guard(self, leave: "_Leave") -> Callable[[Score], Score]:
        def guard(score: Score) -> Score:
            return guarded(
                score,
                self._engine.device.at(Priority.PROBE),
                deadline=leave.deadline,
                cancelled=leave.cancelled,
                chunk_rows=self._settings.chunk_rows,
            )

        return guard

    def _share(self, leave: "_Leave") -> Callable[[Classifier], Classifier]:
        def share(classifier: Classifier) -> Classifier:
            return _SharedClassifier(classifier, leave, rows=self._settings.chunk_rows * 4)

        return share


def patience_seconds(request: ProbeRequest, settings: ProbeSettings) -> float:
    """How long a caller waits: as said, else as many reports as were asked for may take."""
    if request.deadline_ms is not None:
        return request.deadline_ms / 1000
    reports = len(request.prompt_sets or ("the default",)) * len(request.defenses)
    return min(settings.report_seconds * reports, MAX_PROBE_SECONDS)


@dataclass(frozen=True)
class _Leave:
    """When a probe has to stop."""

    engine: Engine
    deadline: float
    gone: threading.Event
    closing: threading.Event

    def cancelled(self) -> bool:
        return self.gone.is_set() or self.closing.is_set()

    def check(self) -> None:
        if self.cancelled():
            raise Cancelled("the caller is gone, the probe stopped.")
        if time.monotonic() > self.deadline:
            raise DeadlineExceeded("the probe did not end in time.", help="Ask for fewer steps, attacks or reports, or give deadline_ms more.")


@dataclass(frozen=True, eq=False)
class _SharedClassifier:
    """A classifier, a few rows at a time under the device's lock."""

    classifier: Classifier
    leave: _Leave
    rows: int

    @property
    def labels(self) -> tuple[str, ...]:
        return self.classifier.labels

    def __call__(self, pixels: Pixels, seeds: Seeds) -> Logits:
        parts: list[Logits] = []
        for chunk, own in zip(pixels.split(self.rows), seeds.split(self.rows), strict=True):
            with self.leave.engine.device.at(Priority.PROBE):
                self.leave.check()
                parts.append(self.classifier(chunk, own))
        return torch.cat(parts)
