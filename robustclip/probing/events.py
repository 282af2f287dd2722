"""What a probe tells while it runs. After any event the listener holds a valid answer: witnesses are only
ever added, the broken end only falls.

Every event is a small JSON object; the report travels beside the last one. Equal questions tell equal
stories: no event carries a clock.
"""

from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from robustclip.attacks.events import Cut
from robustclip.reports.report import CertificatePart, Decision, Knowledge, ProbeReport, Verdict, VerdictValue
from robustclip.sanity.symptoms import Diagnostic
from robustclip.threat import Norm


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ProbeStarted(_Event):
    """`charged` is the most that the whole probe can cost, in charged passes."""

    event: Literal["started"] = "started"
    attacks: int
    charged: int


class CleanDecided(_Event):
    """What the deployed chain says of the untouched picture."""

    event: Literal["clean"] = "clean"
    clean: Decision


class AttackProgress(_Event):
    """After one call of a score. `margin` is this attack's best so far, as its search sees it (None: it looks
    at no margin).

    `stage` names the part of a cascade; `charged` is what the whole probe has spent.
    """

    event: Literal["progress"] = "progress"
    kind: str
    knowledge: Knowledge
    stage: str | None = None
    margin: float | None
    charged: int


class WitnessFound(_Event):
    """A picture that reaches the goal, judged by the serving path; `bits` says whether as PNG or as float
    pixels alone.
    """

    event: Literal["witness"] = "witness"
    kind: str
    knowledge: Knowledge
    bits: Literal["8", "float"]
    label: str
    margin: float
    linf: float
    l2: float


class AttackFinished(_Event):
    """One attack with one knowledge is over; `success` on either judgement."""

    event: Literal["attack"] = "attack"
    kind: str
    knowledge: Knowledge
    success: bool
    charged: int


class BracketMoved(_Event):
    """The smallest radius so far, in pixel units: `broken` has a witness (None: none was found), `unbroken`
    withstood, which proves nothing.
    """

    event: Literal["bracket"] = "bracket"
    norm: Norm
    unbroken: float
    broken: float | None


class Certified(_Event):
    event: Literal["certificate"] = "certificate"
    certificate: CertificatePart


class DiagnosticTaken(_Event):
    event: Literal["diagnostic"] = "diagnostic"
    diagnostic: Diagnostic


class VerdictReached(_Event):
    event: Literal["verdict"] = "verdict"
    verdict: Verdict


class ProbeFinished(_Event):
    """The last event. The report is not part of its JSON."""

    event: Literal["done"] = "done"
    verdict: VerdictValue
    charged: int
    cut: Cut | None
    report: ProbeReport = Field(exclude=True, repr=False)


ProbeEvent: TypeAlias = (
    ProbeStarted
    | CleanDecided
    | AttackProgress
    | WitnessFound
    | AttackFinished
    | BracketMoved
    | Certified
    | DiagnosticTaken
    | VerdictReached
    | ProbeFinished
)
