"""The recipe of a run: everything that decides its weights, besides the data.

Fields that several recipes share are types here. As fields of the base class they would come first in every
recipe, which changes the order in which recipes are written.
"""

from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

BLOCK = 16  # pictures that share one random generator, so that the work can be divided in any way

Samples: TypeAlias = Annotated[int, Field(ge=1, description="pictures to learn from, drawn with replacement")]
Batch: TypeAlias = Annotated[
    int, Field(ge=BLOCK, multiple_of=BLOCK, description="pictures a step, over all processes")
]
Rate: TypeAlias = Annotated[
    float, Field(gt=0, description="learning rate of AdamW: a warm-up, then a cosine")
]
WarmUp: TypeAlias = Annotated[int, Field(ge=1, description="steps")]
Average: TypeAlias = Annotated[
    float,
    Field(
        ge=0,
        lt=1,
        description="decay of the averaged weights, which are checked and written; 0 takes the last",
    ),
]
ClipNorm: TypeAlias = Annotated[float, Field(ge=0, description="largest gradient norm; 0 sets no limit")]
CheckSamples: TypeAlias = Annotated[
    int, Field(ge=1, description="pictures between two checks on the held-out ones")
]


class Recipe(BaseModel):
    """A run resumes only with an equal recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def changed(self, recorded: Mapping[str, Any]) -> list[str]:
        """The fields that had other values when a checkpoint was made."""
        return [name for name, value in self.model_dump().items() if recorded.get(name) != value]
