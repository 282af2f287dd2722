"""The methods. A new one is a file beside these and a name in `AnyObjective`."""

from typing import Annotated, TypeAlias, get_args

from pydantic import Field

from training.objectives.advpt import AdvPT
from training.objectives.advpt_plus import AdvPTPlus
from training.objectives.apd import APD
from training.objectives.apt import APT
from training.objectives.capt import CAPT
from training.objectives.coop import CoOp
from training.objectives.fap import FAP

AnyMethod: TypeAlias = CoOp | AdvPT | AdvPTPlus | APT | FAP | CAPT | APD
AnyObjective: TypeAlias = Annotated[AnyMethod, Field(discriminator="kind")]

OBJECTIVES: dict[str, type[AnyMethod]] = {model.model_fields["kind"].default: model for model in get_args(AnyMethod)}

__all__ = ["APD", "APT", "CAPT", "FAP", "OBJECTIVES", "AdvPT", "AdvPTPlus", "AnyMethod", "AnyObjective", "CoOp"]
