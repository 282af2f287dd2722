"""The methods. A new one is a file beside these and a name in `AnyMethod`."""

from typing import Annotated, TypeAlias, get_args

from pydantic import Field

from training.learning.objectives.advpt import AdvPT
from training.learning.objectives.advpt_plus import AdvPTPlus
from training.learning.objectives.apd import APD
from training.learning.objectives.apt import APT
from training.learning.objectives.capt import CAPT
from training.learning.objectives.coop import CoOp
from training.learning.objectives.fap import FAP

AnyMethod: TypeAlias = CoOp | AdvPT | AdvPTPlus | APT | FAP | CAPT | APD
AnyObjective: TypeAlias = Annotated[AnyMethod, Field(discriminator="kind")]

OBJECTIVES: dict[str, type[AnyMethod]] = {
    model.model_fields["kind"].default: model for model in get_args(AnyMethod)
}

__all__ = [
    "APD",
    "APT",
    "CAPT",
    "FAP",
    "OBJECTIVES",
    "AdvPT",
    "AdvPTPlus",
    "AnyMethod",
    "AnyObjective",
    "CoOp",
]
