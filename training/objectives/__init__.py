"""The methods. A new one is a file beside these and a name in `AnyObjective`."""

from typing import Annotated, TypeAlias, get_args

from pydantic import Field

from training.objectives.advpt import AdvPT
from training.objectives.coop import CoOp

AnyObjective: TypeAlias = Annotated[AdvPT | CoOp, Field(discriminator="kind")]

OBJECTIVES: dict[str, type[AdvPT | CoOp]] = {model.model_fields["kind"].default: model for model in get_args(get_args(AnyObjective)[0])}
