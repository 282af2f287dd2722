"""The gate before a new version is served: it must withstand the witnesses that the served one withstands."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from robustclip.errors import GateFailed, InvalidInput, ReportRefused
from robustclip.reports.replay import Rejudged, Replay, check_size, newly_fooled
from robustclip.reports.witnesses import Witness, collect
from service.loaded import LoadedSet

_NAMED = 5  # witnesses that a refusal names

Gate: TypeAlias = Callable[
    [LoadedSet, LoadedSet | None], None
]  # (candidate, what it would replace); raises GateFailed
Replayed: TypeAlias = Callable[[LoadedSet, Sequence[Witness]], Replay]


def open_gate(candidate: LoadedSet, current: LoadedSet | None) -> None:
    """Passes every version."""


class WitnessGate:
    """Refuses a version that is fooled by a stored witness which the served version of the same name
    withstands.

    The folder is read anew each time, so that new witnesses count at once. Where no version is served
    yet, every version passes. Raises InvalidInput and
    ReportRefused for a folder that can't be used, also when it is made.
    """

    def __init__(self, folder: Path, replayed: Replayed, *, size: int) -> None:
        if not folder.is_dir():
            raise InvalidInput(
                f"expected a folder of probe reports, found {folder}.", field="store.witnesses"
            )
        self._folder = folder
        self._replayed = replayed
        self._size = size
        self._collected()

    def __call__(self, candidate: LoadedSet, current: LoadedSet | None) -> None:
        witnesses = self._collected()
        if current is None or not witnesses:
            return
        fooled = newly_fooled(self._replayed(candidate, witnesses), self._replayed(current, witnesses))
        if fooled:
            named = "; ".join(self._words(each) for each in fooled[:_NAMED])
            more = f"; and {len(fooled) - _NAMED} more" if len(fooled) > _NAMED else ""
            raise GateFailed(
                f"{candidate.ref} is fooled by {len(fooled)} of {len(witnesses)} stored witnesses that "
                f"{current.ref} withstands: {named}{more}.",
                field="version",
                help="Look at them with `robustclip replay`; force serves the version all the same.",
            )

    def _collected(self) -> tuple[Witness, ...]:
        """The stored witnesses. Errors name a report by its path inside the folder, which stays private."""
        try:
            witnesses = collect([self._folder]).witnesses
            check_size(witnesses, self._size)
        except ReportRefused as error:
            raise ReportRefused(
                error.message, field=self._place(error.field or ""), help=error.help
            ) from error
        return witnesses

    def _place(self, source: str) -> str:
        return source.removeprefix(f"{self._folder}/")

    def _words(self, witness: Rejudged) -> str:
        return (
            f"{self._place(witness.source)} ({witness.true_label!r} taken for {witness.label!r}, "
            f"{witness.change:g}/255)"
        )
