"""The errors of the library. HTTP statuses are assigned in service/problems.py."""

import reprlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

if TYPE_CHECKING:  # the command line imports this file and must start at once
    from pydantic import ValidationError


class RobustClipError(Exception):
    """Base of every error that a user can cause or fix.

    `code` is a stable kebab-case identifier, `field` names the wrong input (`labels/3`, `--eps`), and `help`
    says in one sentence what to do.
    """

    code: ClassVar[str] = "error"

    def __init_subclass__(cls, code: str | None = None) -> None:
        cls.code = code or cls.code

    def __init__(self, message: str, *, field: str | None = None, help: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.help = help

    def __str__(self) -> str:
        where = f"{self.field}: " if self.field else ""
        todo = f" {self.help}" if self.help else ""
        return f"{where}{self.message}{todo}"


class InvalidInput(RobustClipError, code="validation"):
    """A value that is not accepted: labels, radii, options."""


class NoDecisionToAttack(InvalidInput, code="no-decision-to-attack"):
    """With a single label there is no decision to change."""


class ImageRefused(RobustClipError, code="image-undecodable"):
    """Base of the image decoder's refusals."""


class ImageFormatRefused(ImageRefused, code="image-format-refused"):
    """Neither JPEG, PNG nor WebP, or an animation."""


class ImageTooManyPixels(ImageRefused, code="image-too-many-pixels"):
    """More pixels, or a longer side, than is decoded."""


class ImageTooCostly(ImageRefused, code="image-too-costly"):
    """A small picture, but more scans, segments or chunks than one needs."""


class ImageTooManyBytes(ImageRefused, code="body-too-large"):
    """More encoded bytes than are read."""


class UnsupportedClip(RobustClipError, code="unsupported-clip"):
    """A backbone that can't be loaded or served."""


class PromptSetRefused(RobustClipError, code="prompt-set-invalid"):
    """A prompt set file that is not loaded; `reason` is a refusal code of prompts_store/FORMAT.md."""

    def __init__(
        self, message: str, *, reason: str, field: str | None = None, help: str | None = None
    ) -> None:
        super().__init__(message, field=field, help=help)
        self.reason = reason


class UnknownPromptSet(RobustClipError, code="unknown-prompt-set"):
    """No prompt set of that name is in the store."""


class UnknownVersion(RobustClipError, code="unknown-version"):
    """No such version of a prompt set, or none that is active."""


class NothingToRollBack(RobustClipError, code="nothing-to-roll-back"):
    """A prompt set that has had no other active version."""


class StoreReadOnly(RobustClipError, code="store-read-only"):
    """A store that can't be written."""


class StoreBusy(RobustClipError, code="store-busy"):
    """A store that another writer holds."""


class StoreFull(RobustClipError, code="store-full"):
    """A store whose disk or quota is full."""


class ProbeTooExpensive(InvalidInput, code="probe-too-expensive"):
    """A probe that may cost more passes than one request may."""


class ProbeUnavailable(RobustClipError, code="probe-unavailable"):
    """A probe that can't run here."""


class DeadlineExceeded(RobustClipError, code="deadline-exceeded"):
    """The time for a request is over."""


class Cancelled(DeadlineExceeded):
    """The caller has disconnected. It has the code of a deadline: nobody reads it."""


class EncoderRefused(RobustClipError, code="encoder-refused"):
    """An image encoder that can't run or disagrees with the torch reference."""


class DataRefused(RobustClipError, code="data-refused"):
    """A data folder that can't be read as labelled images."""


class PurifierRefused(RobustClipError, code="purifier-refused"):
    """Weights of a purifying network that are missing, unreadable, or of another network."""


class GateFailed(RobustClipError, code="gate-failed"):
    """A version that misclassifies stored witnesses."""


class ReportRefused(RobustClipError, code="report-refused"):
    """A file that is no probe report, or whose witness contradicts it."""


class FeatureNotInstalled(RobustClipError, code="feature-not-installed"):
    """An optional dependency is missing; `help` names the extra to install."""


def invalid_input(error: "ValidationError", data: object, *, field: str | None = None) -> InvalidInput:
    """The first complaint of a pydantic model about `data`, with the path to the wrong value.

    The path starts at `field`, as in `attack/ball/radius`.
    """
    first = error.errors(include_url=False)[0]
    path = ([field] if field else []) + written_path(first["loc"], data, missing=first["type"] == "missing")
    message = first["msg"].removeprefix("Value error, ").rstrip(".")
    found = "" if first["type"] == "missing" else f", found {reprlib.repr(first['input']):.60}"
    return InvalidInput(f"{message}{found}.", field="/".join(path) or None)


def written_path(location: Sequence[int | str], data: object, *, missing: bool) -> list[str]:
    """A pydantic location as keys and indices of `data`.

    Pydantic also names the branches of unions, which are no part of the data: they are left out. If a key is
    `missing`, it is named although the data lacks it.
    """
    path: list[str] = []
    node: Any = data
    for position, part in enumerate(location):
        in_list = isinstance(node, list | tuple) and isinstance(part, int)
        if in_list or (isinstance(node, Mapping) and part in node):
            node = cast(Any, node)[part]
        elif not (missing and position == len(location) - 1):
            continue
        path.append(str(part))
    return path
