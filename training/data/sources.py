"""Pictures to measure on, as a question, a preset or a run names them."""

from pathlib import Path

from pydantic import BaseModel, Field

from robustclip.models.prompts import HANDCRAFTED_TEMPLATE
from training.data.classes import Among, choose_classes, imagenet_words
from training.data.downloads import named_data
from training.data.labelled import LabelledImages, with_labels
from training.data.sampling import open_split


class Source(BaseModel, frozen=True, extra="forbid"):
    """A split of a folder, all of its classes or some, and templates for its labels. Nothing is read before
    `open`.
    """

    folder: Path
    split: str = "test"
    classes: Path | None = None
    among: Among = "all"
    templates: tuple[str, ...] = Field(default=(HANDCRAFTED_TEMPLATE,), min_length=1)

    def open(self) -> LabelledImages:
        """The pictures of the classes, with ImageNet's names for its WordNet numbers."""
        data = with_labels(opened := open_split(self.folder, self.split), imagenet_words(opened.labels))
        return data if self.classes is None else choose_classes(data, self.classes, self.among)

    @property
    def name(self) -> str:
        named = named_data(self.folder)
        return self.folder.resolve().name if named is None else named.name
