"""The table of attacks. A new one is a file beside this and a name in `AnyAttack`: commands, requests, probes
and contract tests take it from here.
"""

from typing import Annotated, TypeAlias, get_args

from pydantic import Field, TypeAdapter, ValidationError

from robustclip.attacks.apgd import APGD
from robustclip.attacks.base import pick
from robustclip.attacks.cascade import CandidateCheck, Precision
from robustclip.attacks.ensemble import Ensemble, Preset
from robustclip.attacks.events import CascadeWitness, Cut, Meter
from robustclip.attacks.fmn import FMN
from robustclip.attacks.noise import Noise
from robustclip.attacks.pgd import FGSM, MAX_STARTS, PGD, Start
from robustclip.attacks.square import MAX_QUERIES, Square
from robustclip.errors import invalid_input

__all__ = [
    "APGD",
    "ATTACKS",
    "FGSM",
    "FMN",
    "MAX_QUERIES",
    "MAX_STARTS",
    "PGD",
    "AnyAttack",
    "CandidateCheck",
    "CascadeWitness",
    "Cut",
    "Ensemble",
    "Meter",
    "Noise",
    "Precision",
    "Preset",
    "Square",
    "Start",
    "parse_attack",
    "pick",
]

AnyAttack: TypeAlias = Annotated[
    PGD | FGSM | APGD | Square | FMN | Noise | Ensemble, Field(discriminator="kind")
]

ATTACKS: tuple[type[AnyAttack], ...] = get_args(get_args(AnyAttack)[0])

_ADAPTER: TypeAdapter[AnyAttack] = TypeAdapter(AnyAttack)


def parse_attack(data: object, *, field: str = "attack") -> AnyAttack:
    """An attack from `{"kind": "pgd", "ball": {"kind": "linf", "radius": "4/255"}}`. Raises InvalidInput with
    the path to what is wrong.
    """
    try:
        return _ADAPTER.validate_python(data)
    except ValidationError as error:
        raise invalid_input(error, data, field=field) from error
