"""Attack one decision of the deployed chain and say what came of it.

The victim is exactly what `/classify` serves: prompt set, labels, defense, encoder. Gradients run in float32
torch; every candidate is judged again in a fresh forward of the serving path, as float pixels and from its
PNG. A verdict is the worst case over attacks, never an average.
"""

from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import Literal

from torch import Tensor

from robustclip.attacks.events import Meter
from robustclip.attacks.minimal import Minimal
from robustclip.attacks.pgd import PGD
from robustclip.certificates.vote import smoothing_of
from robustclip.defenses import bind_chain
from robustclip.digests import levels_digest
from robustclip.errors import Cancelled, DeadlineExceeded, InvalidInput
from robustclip.models.classifier import Defended, TorchImageEncoder, check_labels
from robustclip.probing.attacker import Attacker
from robustclip.probing.events import (
    AttackFinished,
    BracketMoved,
    Certified,
    CleanDecided,
    DiagnosticTaken,
    ProbeEvent,
    ProbeFinished,
    ProbeStarted,
    VerdictReached,
    WitnessFound,
)
from robustclip.probing.examination import Examination, successes_of
from robustclip.probing.options import ProbeOptions, certify_options, claimed_ball
from robustclip.probing.plan import Trial, charged_passes, draws_of, is_randomized, minimal_of, trials_of
from robustclip.probing.records import (
    attack_record,
    brought_nearer,
    certificate_of,
    just_around,
    minimal_radius,
    with_search,
)
from robustclip.probing.served import Aim, Served
from robustclip.probing.trials import Scene
from robustclip.probing.verdict import reach_verdict
from robustclip.probing.victim import Victim, describe_victim
from robustclip.reports.report import (
    AttackRecord,
    CertificatePart,
    Gap,
    InputPart,
    MinimalRadius,
    ProbeReport,
)
from robustclip.reports.witnesses import is_within, size_of
from robustclip.sanity.base import Suspicion
from robustclip.sanity.gradients import Climb
from robustclip.sanity.selftest import SelfTest
from robustclip.sanity.symptoms import Diagnostic
from robustclip.seeds import draw_seeds
from robustclip.types import Cost, Guard, Pixels, Share, price


def probe(
    victim: Victim,
    pixels: Tensor,
    options: ProbeOptions,
    *,
    guard: Guard = lambda score: score,
    share: Share = lambda classifier: classifier,
    sources: Sequence[Victim] = (),
    meter: Meter | None = None,
) -> ProbeReport:
    """Attack the victim's decision about one picture [3, S, S]; deterministic given `options.seed`, unless a
    deadline cuts it.

    `guard` wraps every score that is attacked and `share` every classifier that is only asked; no pass goes
    past them (a service takes its device lock there). `sources` are other prompt sets over the same labels,
    whose gradients are tried too. `meter` says when to stop: the report then holds what was found so far.
    Raises InvalidInput for options that don't fit the victim, and DeadlineExceeded where not even the clean
    decision was reached.
    """
    for event in events(victim, pixels, options, guard=guard, share=share, sources=sources, meter=meter):
        if isinstance(event, ProbeFinished):
            return event.report
    raise AssertionError("a probe ends with its report")


def events(
    victim: Victim,
    pixels: Tensor,
    options: ProbeOptions,
    *,
    guard: Guard = lambda score: score,
    share: Share = lambda classifier: classifier,
    sources: Sequence[Victim] = (),
    meter: Meter | None = None,
) -> Iterator[ProbeEvent]:
    """The same probe, telling what happens; the last event has the report. Stopping the iterator stops the
    probe.
    """
    return _Probe(victim, pixels[None], options, guard, share, tuple(sources), meter or Meter()).events()


class _Probe:
    def __init__(
        self,
        victim: Victim,
        pixels: Pixels,
        options: ProbeOptions,
        guard: Guard,
        share: Share,
        sources: tuple[Victim, ...],
        meter: Meter,
    ) -> None:
        check_labels(victim.labels, victim.clip)
        self.victim, self.pixels, self.options, self.meter = victim, pixels, options, meter
        self.trials = trials_of(victim, options, sources=len(sources))
        self.bill = charged_passes(victim, options, sources=len(sources))
        reference = TorchImageEncoder(victim.clip)
        defended = Defended(victim.classifier(reference), bind_chain(victim.defense, reference))
        self.seeds = draw_seeds(options.seed, 1)
        serving = Defended(victim.classifier(victim.serving), bind_chain(victim.defense, victim.serving))
        rule, draws = smoothing_of(victim.defense), draws_of(victim, options)
        self.served = Served(
            share(serving), is_randomized(victim), draws, self.seeds, meter, rule, price(serving, 1)
        )
        named = {
            field: self._index(label, field)
            for field in ("true_label", "target_label")
            if (label := getattr(options, field)) is not None
        }
        clean = self.served.opinion(self.served.logits(pixels, "clean"))
        self.aim = Aim(named.get("true_label", int(clean.argmax())), named.get("target_label"))
        if self.aim.goal == self.aim.truth:
            raise InvalidInput(
                f"{options.target_label!r} is already the label to leave.",
                field="target_label",
                help="Choose another label.",
            )
        self.clean = self.served.decision(clean, self.aim.truth)
        self.attacker = Attacker(victim, self.aim, options.score, options.eot, guard, share, sources)
        self.scene = Scene(self.attacker, self.served, pixels, self.seeds, self.aim)
        self.examination = Examination(self.attacker, defended, pixels, self.seeds, options, meter)
        self.records: list[AttackRecord] = []
        self.witnesses: list[Pixels] = []
        self.climb: Climb | None = None
        self.minimal_radius: MinimalRadius | None = None
        self.certificate: CertificatePart | None = None
        self.share = share
        self.diagnostics: list[Diagnostic] = []
        self.self_test: SelfTest | None = None

    def events(self) -> Iterator[ProbeEvent]:
        yield ProbeStarted(attacks=len(self.trials), charged=self.bill)
        yield CleanDecided(clean=self.clean)
        try:
            for trial in self.trials:
                if not self._over():
                    yield from self._attack(trial)
            if self.options.minimal and not self._over():
                yield from self._bracket(minimal_of(self.victim, self.options))
            if (asked := certify_options(self.victim, self.options)) is not None and not self._over():
                self.certificate = certificate_of(
                    self.victim, self.pixels[0], asked, share=self.share, meter=self.meter
                )
                yield Certified(certificate=self.certificate)
            if not self._over():
                yield from self._examine()
        except Cancelled:
            self.meter.cut = "cancelled"
        except DeadlineExceeded:
            self.meter.cut = "deadline"
        report = self._report()
        yield VerdictReached(verdict=report.verdict)
        yield ProbeFinished(
            verdict=report.verdict.value, charged=report.charged, cut=report.cut, report=report
        )

    def _over(self) -> bool:
        """Whether to stop: the meter says so, or what was found is enough."""
        limit, norm = self.options.enough, self.options.attacks[0].ball.kind
        found = (
            any(
                is_within(size_of(record, norm), limit)
                for record in self.records
                if record.success or record.success_8bit
            )
            if limit
            else False
        )
        wrong = limit is not None and self.options.true_label is not None and not self.clean.correct
        return found or wrong or self.meter.over()

    def _attack(self, trial: Trial) -> Iterator[ProbeEvent]:
        found = yield from self.scene.run(trial, witnesses=self.witnesses)
        if found is not None:
            if trial.attack.ball == claimed_ball(self.options):
                self.climb = found.climb or self.climb
            candidate = self.served.candidate(found.pixels, self.pixels, trial.attack.ball, self.aim)
            record = attack_record(
                trial.attack,
                trial.knowledge,
                candidate,
                origin=self.pixels,
                attacker=self.attacker,
                options=self.options,
                cost=found.cost,
            )
            yield from self._remember(with_search(record, found, self.options), candidate.pixels)

    def _bracket(self, minimal: Minimal) -> Iterator[ProbeEvent]:
        """The smallest radius. A witness within the radius that was asked for counts as any attack's."""
        found = yield from self.scene.bracket(minimal, witnesses=self.witnesses)
        if found is None:
            return
        candidate, broken = None, found.bracket.broken
        if found.nearest is not None and broken is not None:
            asked = max(
                (
                    attack.ball.radius
                    for attack in self.options.attacks
                    if attack.ball.kind == minimal.ball.kind
                ),
                default=0.0,
            )
            inside = broken <= asked
            ball = just_around(minimal.ball, broken, at_most=asked if inside else minimal.ball.radius)
            candidate = self.served.candidate(found.nearest, self.pixels, ball, self.aim)
            if inside:
                around = minimal.model_copy(update={"ball": ball})
                record = attack_record(
                    around,
                    "adaptive",
                    candidate,
                    origin=self.pixels,
                    attacker=self.attacker,
                    options=self.options,
                    cost=found.cost,
                )
                yield from self._remember(record, candidate.pixels)
        self.minimal_radius = minimal_radius(minimal, found, candidate, self.records)

    def _examine(self) -> Iterator[ProbeEvent]:
        for finding in self.examination.findings(tuple(self.records), self.climb):
            yield self._noted(finding.diagnostic)
            if finding.suspicion is not None:
                yield from self._reconsider(finding.suspicion, finding.cost)
        self.self_test = self.examination.self_test(self.records)
        if self.self_test is not None and (diagnostic := self.self_test.diagnostic()) is not None:
            yield self._noted(diagnostic)

    def _noted(self, diagnostic: Diagnostic) -> DiagnosticTaken:
        self.diagnostics.append(diagnostic)
        return DiagnosticTaken(diagnostic=diagnostic)

    def _reconsider(self, suspicion: Suspicion, cost: Cost) -> Iterator[ProbeEvent]:
        """What a check found on its way is a candidate like any other, and may be nearer than the
        bracket's.
        """
        attack = suspicion.attack
        candidate = self.served.candidate(suspicion.pixels, self.pixels, attack.ball, self.aim)
        record = attack_record(
            attack,
            "adaptive" if isinstance(attack, PGD) else "black_box",
            candidate,
            origin=self.pixels,
            attacker=self.attacker,
            options=self.options,
            cost=cost,
        )
        update = {"eot": suspicion.draws, "score": suspicion.loss or record.score}
        yield from self._remember(record := record.model_copy(update=update), candidate.pixels)
        if (
            self.minimal_radius is not None
            and (nearer := brought_nearer(self.minimal_radius, record)) != self.minimal_radius
        ):
            self.minimal_radius = nearer
            yield BracketMoved(norm=nearer.norm, unbroken=nearer.unbroken, broken=nearer.broken)

    def _remember(self, record: AttackRecord, pixels: Pixels) -> Iterator[ProbeEvent]:
        self.records.append(record)
        success = record.success or record.success_8bit
        if success:
            self.witnesses.append(pixels)
            yield WitnessFound(
                kind=record.kind,
                knowledge=record.knowledge,
                bits="8" if record.success_8bit else "float",
                label=record.label,
                margin=record.margin,
                linf=record.linf,
                l2=record.l2,
            )
        yield AttackFinished(
            kind=record.kind, knowledge=record.knowledge, success=success, charged=self.meter.spent.charged
        )

    def _report(self) -> ProbeReport:
        successes, question, spent = successes_of(self.records), self._question(), self.meter.spent
        gap = None
        if self.victim.defense and {"static", "adaptive"} <= successes.keys():
            static, adaptive = successes["static"], successes["adaptive"]
            gap = Gap(static_success=static, adaptive_success=adaptive, illusory=adaptive and not static)
        balls = [attack.ball for attack in self.options.attacks]
        verdict = reach_verdict(
            question,
            self.records,
            self.diagnostics,
            balls=balls,
            charged=spent.charged,
            cut=self.meter.cut,
            certificate=self.certificate,
        )
        return ProbeReport(
            code_version=version("robustclip"),
            seed=self.options.seed,
            device=str(self.victim.clip.device),
            victim=describe_victim(self.victim),
            input=question,
            attacks=tuple(self.records),
            gap=gap,
            diagnostics=tuple(self.diagnostics),
            verdict=verdict,
            forward=spent.forward,
            backward=spent.backward,
            charged=spent.charged,
            minimal_radius=self.minimal_radius,
            self_test=self.self_test,
            certificate=self.certificate,
            cut=self.meter.cut,
        )

    def _question(self) -> InputPart:
        goal: Literal["change_label", "change_decision", "reach_target"]
        goal = (
            "reach_target"
            if self.aim.goal is not None
            else "change_decision"
            if self.options.true_label is None
            else "change_label"
        )
        return InputPart(
            sha256=levels_digest(self.pixels),
            resolution=(self.pixels.shape[-2], self.pixels.shape[-1]),
            true_label=self.victim.labels[self.aim.truth],
            target_label=self.options.target_label,
            goal=goal,
            clean=self.clean,
        )

    def _index(self, label: str, field: str) -> int:
        if label not in self.victim.labels:
            raise InvalidInput(
                f"{label!r} is not among the labels.",
                field=field,
                help=f"Choose one of: {', '.join(self.victim.labels[:10])}.",
            )
        return self.victim.labels.index(label)
