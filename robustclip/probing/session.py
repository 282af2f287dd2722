"""One probe on its way: trials, bracket, certificate and checks, one after the other."""

from collections.abc import Iterator

from robustclip.attacks.events import Meter
from robustclip.attacks.minimal import Minimal
from robustclip.attacks.pgd import PGD
from robustclip.certificates.vote import smoothing_of
from robustclip.deployed import DeployedClassifier
from robustclip.errors import Cancelled, DeadlineExceeded
from robustclip.models.labels import check_labels
from robustclip.probing.attacker import Attacker
from robustclip.probing.conclusion import named_labels, question_of, report_of
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
from robustclip.probing.examination import Examination
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
from robustclip.probing.verdict import reached_untouched
from robustclip.reports.report import AttackRecord, CertificatePart, MinimalRadius
from robustclip.reports.witnesses import is_within, size_of
from robustclip.sanity.gradients import Climb
from robustclip.sanity.selftest import SelfTest
from robustclip.sanity.symptoms import Diagnostic, Suspicion
from robustclip.seeds import draw_seeds
from robustclip.types import Cost, DeviceAccess, Pixels, price


class Session:
    """A probe of one picture [1, 3, S, S]; arguments and errors as in `robustclip.probing.run.probe`. Making
    it takes the clean decision, `events` does the rest.
    """

    def __init__(
        self,
        victim: DeployedClassifier,
        pixels: Pixels,
        options: ProbeOptions,
        access: DeviceAccess,
        sources: tuple[DeployedClassifier, ...],
        meter: Meter,
    ) -> None:
        check_labels(victim.outcomes, victim.clip)
        self.victim, self.pixels, self.options, self.meter = victim, pixels, options, meter
        self.access = access
        self.trials = trials_of(victim, options, sources=len(sources))
        self.bill = charged_passes(victim, options, sources=len(sources))
        self.seeds = draw_seeds(options.seed, 1)
        _bind(victim, *sources, access=access)
        rule, draws, cost = smoothing_of(victim.defense), draws_of(victim, options), price(victim.served, 1)
        self.served = Served(
            access.shared(victim.served),
            is_randomized(victim),
            draws,
            self.seeds,
            meter,
            rule,
            cost,
            victim.scoring,
        )
        truth, goal = named_labels(options, victim.outcomes)
        clean = self.served.opinion(self.served.logits(pixels, "clean"))
        self.aim = Aim(int(clean.argmax()) if truth is None else truth, goal)
        self.clean = self.served.decision(clean, self.aim.truth)
        self.question = question_of(victim, pixels, options, self.aim, self.clean)
        self.attacker = Attacker(victim, self.aim, options.score, options.eot, access, sources)
        self.scene = Scene(self.attacker, self.served, pixels, self.seeds, self.aim)
        self.examination = Examination(self.attacker, pixels, self.seeds, options, meter)
        self.records: list[AttackRecord] = []
        self.witnesses: list[Pixels] = []
        self.climb: Climb | None = None
        self.minimal_radius: MinimalRadius | None = None
        self.certificate: CertificatePart | None = None
        self.diagnostics: list[Diagnostic] = []
        self.self_test: SelfTest | None = None

    def events(self) -> Iterator[ProbeEvent]:
        yield ProbeStarted(attacks=len(self.trials), charged=self.bill)
        yield CleanDecided(clean=self.clean)
        to_attack = not reached_untouched(self.question)
        try:
            for trial in self.trials if to_attack else ():
                if not self._over():
                    yield from self._attack(trial)
            if to_attack and self.options.minimal and not self._over():
                yield from self._bracket(minimal_of(self.victim, self.options))
            if (certifying := certify_options(self.victim, self.options)) is not None and not self._over():
                self.certificate = certificate_of(
                    self.victim, self.pixels[0], certifying, access=self.access, meter=self.meter
                )
                yield Certified(certificate=self.certificate)
            if to_attack and not self._over():
                yield from self._examine()
        except Cancelled:
            self.meter.cut = "cancelled"
        except DeadlineExceeded:
            self.meter.cut = "deadline"
        report = report_of(
            self.victim,
            self.question,
            self.options,
            self.meter,
            records=self.records,
            diagnostics=self.diagnostics,
            minimal_radius=self.minimal_radius,
            self_test=self.self_test,
            certificate=self.certificate,
        )
        yield VerdictReached(verdict=report.verdict)
        yield ProbeFinished(
            verdict=report.verdict.value, charged=report.charged, cut=report.cut, report=report
        )

    def _over(self) -> bool:
        """Whether to stop: the meter says so, or a witness lies within `options.enough`."""
        limit, norm = self.options.enough, self.options.attacks[0].ball.kind
        enough = (
            any(
                is_within(size_of(record, norm), limit)
                for record in self.records
                if record.success or record.success_8bit
            )
            if limit
            else False
        )
        return enough or self.meter.over()

    def _attack(self, trial: Trial) -> Iterator[ProbeEvent]:
        result = yield from self.scene.run(trial, witnesses=self.witnesses)
        if result is not None:
            if trial.attack.ball == claimed_ball(self.options):
                self.climb = result.climb or self.climb
            candidate = self.served.candidate(result.pixels, self.pixels, trial.attack.ball, self.aim)
            record = attack_record(
                trial.attack,
                trial.knowledge,
                candidate,
                origin=self.pixels,
                attacker=self.attacker,
                options=self.options,
                cost=result.cost,
            )
            yield from self._remember(with_search(record, result, self.options), candidate.pixels)

    def _bracket(self, minimal: Minimal) -> Iterator[ProbeEvent]:
        """The smallest radius. A witness within the radius of the attacks is recorded like any other."""
        result = yield from self.scene.bracket(minimal, witnesses=self.witnesses)
        if result is None:
            return
        candidate, broken = None, result.bracket.broken
        if result.nearest is not None and broken is not None:
            largest = max(
                (
                    attack.ball.radius
                    for attack in self.options.attacks
                    if attack.ball.kind == minimal.ball.kind
                ),
                default=0.0,
            )
            inside = broken <= largest
            ball = just_around(minimal.ball, broken, at_most=largest if inside else minimal.ball.radius)
            candidate = self.served.candidate(result.nearest, self.pixels, ball, self.aim)
            if inside:
                around = minimal.model_copy(update={"ball": ball})
                record = attack_record(
                    around,
                    "adaptive",
                    candidate,
                    origin=self.pixels,
                    attacker=self.attacker,
                    options=self.options,
                    cost=result.cost,
                )
                yield from self._remember(record, candidate.pixels)
        self.minimal_radius = minimal_radius(minimal, result, candidate, self.records)

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
        """Judge a check's candidate like any other; it may be nearer than the bracket's."""
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


def _bind(*victims: DeployedClassifier, access: DeviceAccess) -> None:
    """Make text features, which take device turns of their own; then bind every defense, once."""
    for victim in victims:
        _ = victim.weights
    with access.hold():
        for victim in victims:
            _ = victim.served, victim.reference
