"""Pictures to measure on, as a question, a preset or a run names them: nothing is read before they are
opened.
"""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from robustclip.models.prompts import HANDCRAFTED_TEMPLATE
from training.data.classes import Among, choose_classes, imagenet_words
from training.data.downloads import named_data
from training.data.labelled import LabelledImages, with_labels
from training.data.sampling import open_split


class Source(BaseModel):
    """Pictures to measure on: a split of a folder, all classes of it or some, and the words a person would
    write around its labels.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    folder: Path
    split: str = "test"
    classes: Path | None = None
    among: Among = "all"
    templates: tuple[str, ...] = Field(default=(HANDCRAFTED_TEMPLATE,), min_length=1)

    def open(self) -> LabelledImages:
        """The split, only the asked classes of it; ImageNet's names for its WordNet numbers."""
        data = with_labels(opened := open_split(self.folder, self.split), imagenet_words(opened.labels))
        return data if self.classes is None else choose_classes(data, self.classes, self.among)

    @property
    def name(self) -> str:
        named = named_data(self.folder)
        return self.folder.resolve().name if named is None else named.name
