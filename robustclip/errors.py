"""The few errors of the library. Each says what was expected, what was found and what to do; no web status
here (service/problems.py maps codes).
"""

import reprlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

if TYPE_CHECKING:  # the command line imports this file and must start at once
    from pydantic import ValidationError


class RobustClipError(Exception):
    """Base of every error that a user can cause or cure.

    `code` is a stable kebab-case identifier, `field` names the input at fault (`labels/3`, `--eps`), `help`
    is one sentence: what to do.
    """

    code: ClassVar[str] = "error"

    def __init__(self, message: str, *, field: str | None = None, help: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.help = help

    def __str__(self) -> str:
        where = f"{self.field}: " if self.field else ""
        todo = f" {self.help}" if self.help else ""
        return f"{where}{self.message}{todo}"


class InvalidInput(RobustClipError):
    """A value outside what is accepted: labels, radii, options."""

    code = "validation"


class NoDecisionToAttack(InvalidInput):
    """One label is no decision: there is nothing to change."""

    code = "no-decision-to-attack"


class ImageRefused(RobustClipError):
    """Base of what the image guard refuses."""

    code = "image-undecodable"


class ImageFormatRefused(ImageRefused):
    code = "image-format-refused"


class ImageTooManyPixels(ImageRefused):
    code = "image-too-many-pixels"


class ImageTooManyBytes(ImageRefused):
    code = "body-too-large"


class UnsupportedClip(RobustClipError):
    """A backbone that can't be loaded or served, named with the reason."""

    code = "unsupported-clip"


class PromptSetRefused(RobustClipError):
    """A prompt set file that is not loaded; `reason` is one of the refusal codes of
    prompts_store/FORMAT.md.
    """

    code = "prompt-set-invalid"

    def __init__(
        self, message: str, *, reason: str, field: str | None = None, help: str | None = None
    ) -> None:
        super().__init__(message, field=field, help=help)
        self.reason = reason


class UnknownPromptSet(RobustClipError):
    code = "unknown-prompt-set"


class UnknownVersion(RobustClipError):
    code = "unknown-version"


class NothingToRollBack(RobustClipError):
    code = "nothing-to-roll-back"


class StoreReadOnly(RobustClipError):
    code = "store-read-only"


class ProbeTooExpensive(InvalidInput):
    code = "probe-too-expensive"


class ProbeUnavailable(RobustClipError):
    code = "probe-unavailable"


class DeadlineExceeded(RobustClipError):
    code = "deadline-exceeded"


class Cancelled(DeadlineExceeded):
    """Whoever asked is gone. The same code as a deadline: nobody reads it."""


class EncoderRefused(RobustClipError):
    """An image encoder that does not agree with the torch reference, or can't run."""

    code = "encoder-refused"


class DataRefused(RobustClipError):
    """A data folder that can't be read as labelled images."""

    code = "data-refused"


class PurifierRefused(RobustClipError):
    """Weights of a purifying network that are not here, or are not what they are named for."""

    code = "purifier-refused"


class GateFailed(RobustClipError):
    """A version that stored witnesses fool anew."""

    code = "gate-failed"


class ReportRefused(RobustClipError):
    """A file that is no probe report, or one whose witness is not what it says."""

    code = "report-refused"


class FeatureNotInstalled(RobustClipError):
    """An optional dependency is missing; `help` names the extra that brings it."""

    code = "feature-not-installed"


def invalid_input(error: "ValidationError", data: object, *, field: str | None = None) -> InvalidInput:
    """The first complaint of a pydantic model about `data`, with the path to the value at fault below `field`
    (`attack/ball/radius`).
    """
    first = error.errors(include_url=False)[0]
    path = ([field] if field else []) + written_path(first["loc"], data, missing=first["type"] == "missing")
    message = first["msg"].removeprefix("Value error, ").rstrip(".")
    found = "" if first["type"] == "missing" else f", found {reprlib.repr(first['input']):.60}"
    return InvalidInput(f"{message}{found}.", field="/".join(path) or None)


def written_path(location: Sequence[int | str], data: object, *, missing: bool) -> list[str]:
    """A pydantic location as keys and indices of `data`: without the branches of unions, which pydantic names
    and nobody wrote.

    The last part of a `missing` complaint stays, although the data lacks it.
    """
    path: list[str] = []
    node: Any = data
    for position, part in enumerate(location):
        if (isinstance(node, Mapping) and part in node) or (
            isinstance(node, list | tuple) and isinstance(part, int)
        ):
            node = cast(Any, node)[part]
        elif not (missing and position == len(location) - 1):
            continue
        path.append(str(part))
    return path
