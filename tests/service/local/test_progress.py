"""What is shown of a probe that runs, and Ctrl-C."""

import os
import signal
from collections.abc import Iterator

import pytest
from probing import options, picture, victim

from robustclip.attacks.events import Meter
from robustclip.models.clip import Clip
from robustclip.probing.events import BracketMoved, DiagnosticTaken, ProbeEvent
from robustclip.probing.run import events
from robustclip.sanity.symptoms import Diagnostic
from service.local.progress import followed, in_words, interruptible


@pytest.mark.parametrize("broken", [None, 2.5 / 255])
def test_a_bracket_is_told_with_both_ends(broken: float | None) -> None:
    words = in_words(BracketMoved(norm="linf", unbroken=1 / 255, broken=broken))
    assert (
        words
        == f"smallest radius: {'nothing breaks it yet' if broken is None else '2.5/255 breaks it'}, 1/255 "
        f"withstood"
    )


def test_only_flags_that_fired_are_worth_a_line() -> None:
    flag = Diagnostic(
        id="M1", name="zero gradient", fired=True, severity="hard", number=1.0, threshold=0.01, sentence=""
    )
    assert in_words(DiagnosticTaken(diagnostic=flag)) == "hard flag M1 zero gradient: 1"
    assert in_words(DiagnosticTaken(diagnostic=flag.model_copy(update={"fired": False}))) is None


def test_ctrl_c_ends_a_probe_with_what_it_has(tiny: Clip, capsys: pytest.CaptureFixture[str]) -> None:
    def told() -> Iterator[ProbeEvent]:
        for event in events(victim(tiny), picture(tiny), options(), meter=Meter(cancelled=pressed)):
            yield event
            if event.event == "clean":
                os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with interruptible() as pressed:
        report = followed(told(), lines=True)
    assert (report.verdict.reason, report.attacks) == ("cancelled", ())
    assert signal.getsignal(signal.SIGINT) is before
    assert capsys.readouterr().err.splitlines()[1].startswith("clean: ")
