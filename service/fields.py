"""The fields that requests are made of, each checked where it is read.

Operators set limits, so the limits come as the context of the validation: `schemas.parse` gives them.
"""

import re
import unicodedata
from typing import Annotated, Any, cast

import pybase64
from pydantic import AfterValidator, Field, PlainValidator, ValidationInfo, WithJsonSchema
from pydantic_core import PydanticCustomError

from robustclip.defenses import AnyDefense
from service.config import LimitSettings
from service.problems import invalid

_SPACE_IN_LINE = re.compile(r"[^ \t\r\n][ \t]+[^ \t\r\n]")
MAX_SEED = 2**53 - 1  # what every JSON reader keeps exactly


def limits_of(info: ValidationInfo) -> LimitSettings:
    """The operator's limits, which `schemas.parse` gives to every validation."""
    return cast(LimitSettings, info.context)


def _cleaned(label: str) -> str:
    """One spelling of texts that look alike: composed characters, no space around."""
    return unicodedata.normalize("NFC", label).strip()


def _labels(labels: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
    limits = limits_of(info)
    cleaned = tuple(map(_cleaned, labels))
    seen: dict[str, int] = {}
    for index, label in enumerate(cleaned):
        if not label:
            raise invalid(f"#/labels/{index}", "a label is empty.")
        if len(label) > limits.label_characters:
            raise invalid(
                f"#/labels/{index}",
                f"expected at most {limits.label_characters} characters, found {len(label)}.",
            )
        if label in seen:
            raise invalid(
                f"#/labels/{index}", f"{label!r} repeats label {seen[label]}.", help="Give each label once."
            )
        seen[label] = index
    if not cleaned:  # how many more make a decision depends on its scoring
        raise invalid("#/labels", "expected labels, found none.", help="Name what to choose from.")
    return cleaned


def _without_line_breaks(text: str) -> str:
    """Base64 in lines (RFC 2045, section 6.8) as one. A space within a line stays, and so is refused: it is
    more likely a `+` that a form decoded.
    """
    if _SPACE_IN_LINE.search(text):
        return text
    for space in "\r\n \t":
        text = text.replace(space, "")
    return text


def _image(value: object, info: ValidationInfo) -> bytes:
    """Encoded image bytes from a part of a form, a base64 object or a data URI; too long ones are refused
    before they are decoded.
    """
    if isinstance(value, bytes):
        return value
    limits = limits_of(info)
    if isinstance(value, str) and value.startswith("data:"):
        header, comma, text = value.partition(",")
        if not comma or not header.endswith(";base64"):
            raise ValueError("a data URI must read data:image/jpeg;base64,...")
    elif (
        isinstance(value, dict)
        and set(cast(dict[str, Any], value)) == {"type", "data"}
        and value["type"] == "base64"
        and isinstance(value["data"], str)
    ):
        text = value["data"]
    elif isinstance(value, dict) and cast(dict[str, Any], value).get("type") == "url":
        raise PydanticCustomError("url-disabled", "images are not fetched from addresses")
    else:
        raise ValueError('an image is {"type": "base64", "data": "..."} or a data URI')
    text = _without_line_breaks(text)
    if len(text) * 3 // 4 > limits.image_bytes + 2:
        raise PydanticCustomError(
            "body-too-large", "expected an image of at most {limit} bytes", {"limit": limits.image_bytes}
        )
    try:
        return pybase64.b64decode(text, validate=True)
    except ValueError as error:
        raise ValueError("the image is not valid base64") from error


_IMAGE_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {
            "type": "object",
            "properties": {
                "type": {"const": "base64"},
                "data": {"type": "string", "contentEncoding": "base64"},
            },
            "required": ["type", "data"],
            "additionalProperties": False,
        },
        {"type": "string", "pattern": "^data:[a-z]+/[a-z]+;base64,", "contentEncoding": "base64"},
    ]
}
EncodedImage = Annotated[bytes, PlainValidator(_image), WithJsonSchema(_IMAGE_SCHEMA)]
Label = Annotated[str, AfterValidator(_cleaned)]
Labels = Annotated[
    tuple[Annotated[str, Field(json_schema_extra={"minLength": 1})], ...],
    AfterValidator(_labels),
    Field(
        description="what to choose from: 2 or more different texts; under `sigmoid` 1 is enough",
        json_schema_extra={"minItems": 1, "uniqueItems": True, "examples": [["cat", "dog"]]},
    ),
]
DefenseChain = Annotated[
    str | tuple[str | AnyDefense, ...],
    Field(
        description='"none", "default" (the operator\'s), words like "jpeg:75,bit_depth:4", or a list of '
        "words and specifications; left to right"
    ),
]
SetName = Annotated[
    str,
    Field(
        max_length=80, description="NAME, NAME@active, or NAME@VERSION to pin one", examples=["handcrafted"]
    ),
]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
