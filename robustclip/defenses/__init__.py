"""The table of defenses. A new one is a file beside this and a name in `AnyDefense`; nothing else changes."""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeAlias, cast, get_args

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from robustclip.defenses.base import Chain, Identity, check_order
from robustclip.defenses.bit_depth import BitDepth
from robustclip.defenses.clipure_cosine import ClipureCosine
from robustclip.defenses.counterattack import Counterattack
from robustclip.defenses.diffusion import Diffusion
from robustclip.defenses.jpeg import Jpeg
from robustclip.defenses.low_pass import LowPass
from robustclip.defenses.median import Median
from robustclip.defenses.resize_pad import ResizePad
from robustclip.defenses.smoothing import Smoothing
from robustclip.defenses.super_resolution import SuperResolution
from robustclip.defenses.total_variation import TotalVariation
from robustclip.defenses.wavelet import Wavelet
from robustclip.errors import FeatureNotInstalled, InvalidInput, PurifierRefused, invalid_input
from robustclip.purifiers import digest_of
from robustclip.types import Defense, ImageEncoder

AnyDefense: TypeAlias = Annotated[
    ResizePad
    | Jpeg
    | BitDepth
    | Median
    | TotalVariation
    | Wavelet
    | LowPass
    | SuperResolution
    | Diffusion
    | Counterattack
    | ClipureCosine
    | Smoothing,
    Field(discriminator="kind"),
]

Link: TypeAlias = str | Mapping[str, Any] | BaseModel

DEFENSES: tuple[type[AnyDefense], ...] = get_args(get_args(AnyDefense)[0])
MAX_LINKS = 8

_ADAPTER: TypeAdapter[AnyDefense] = TypeAdapter(AnyDefense)
_STRENGTHS = {defense.model_fields["kind"].default: defense.strength for defense in DEFENSES}


def parse_defenses(data: str | Sequence[Link], *, field: str = "defense") -> tuple[AnyDefense, ...]:
    """A chain from text or a list; empty and "none" mean no defense.

    Text is "jpeg:75,bit_depth:4,resize_pad" or JSON; a list holds such words, mappings with `kind`, or
    defenses. Raises InvalidInput with the path to what is wrong (`defense/0/quality`).
    """
    links = _from_text(data, field) if isinstance(data, str) else data
    if not isinstance(links, list | tuple):
        raise InvalidInput(
            f"expected a list of defenses, found {data!r:.60}.",
            field=field,
            help='Write it like "jpeg:75,bit_depth:4".',
        )
    if [link.strip() if isinstance(link, str) else link for link in links] in ([], [""], ["none"]):
        return ()
    if len(links) > MAX_LINKS:
        raise InvalidInput(f"expected at most {MAX_LINKS} defenses, found {len(links)}.", field=field)
    chain = tuple(_parse(link, f"{field}/{index}") for index, link in enumerate(links))
    check_order([spec.stage for spec in chain], field)
    for index, spec in enumerate(chain):
        if index > 0 and isinstance(spec, Smoothing):
            raise InvalidInput(
                f"smoothing adds its noise to the picture itself, found behind {chain[index - 1].kind}.",
                field=f"{field}/{index}",
                help="Put it first, once; a defense behind it denoises.",
            )
    return chain


def bind_chain(specs: Sequence[AnyDefense], encoder: ImageEncoder) -> Defense:
    """The defense that runs: the bound specifications in order, or the identity for none.

    Raises PurifierRefused or FeatureNotInstalled, with the path, for a link whose network can't be used.
    """
    bound: list[Defense] = []
    for index, spec in enumerate(specs):
        try:
            bound.append(spec.bind(encoder))
        except (PurifierRefused, FeatureNotInstalled) as error:
            error.field = f"defense/{index}/{error.field}"
            raise
    return Chain(tuple(bound)) if bound else Identity()


def network_digests(specs: Sequence[AnyDefense]) -> tuple[str, ...]:
    """sha256 of the weights of each purifying network in a chain. Raises as `bind_chain`."""
    return tuple(digest_of(*network) for spec in specs for network in spec.networks)


def _from_text(text: str, field: str) -> list[Any]:
    if not text.lstrip().startswith(("[", "{")):
        return list(text.split(","))
    try:
        read = json.loads(text)
    except ValueError as error:
        raise InvalidInput(
            f"no chain and no JSON: {error}.", field=field, help='Write it like "jpeg:75,bit_depth:4".'
        ) from error
    return cast(list[Any], read) if isinstance(read, list) else [read]


def _parse(link: Link, field: str) -> AnyDefense:
    value = _from_word(link) if isinstance(link, str) else link
    try:
        return _ADAPTER.validate_python(value)
    except ValidationError as error:
        raise invalid_input(error, value, field=field) from error


def _from_word(word: str) -> dict[str, str]:
    kind, colon, strength = (part.strip() for part in word.partition(":"))
    return {"kind": kind} | ({_STRENGTHS.get(kind, "strength"): strength} if colon else {})
