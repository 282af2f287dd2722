"""A line of `robustclip certified`: a prompt set under a smoothed rule, on all its pictures."""

from typing import Literal

from pydantic import JsonValue

from training.measuring.schema.base import Interval, Line, OnData


class Share(Interval):
    """Of how many pictures something is true."""

    count: int
    share: float


class Within(Share):
    """Of how many the certificate is right and reaches this L2 radius; `linf`: the radius that this implies,
    in words.
    """

    l2: float
    linf: str


class Attacks(Line):
    """What came of attacks at `factor` of the certified radius: how many fell, and how many had no answer; no
    interval where nothing was attacked.
    """

    norm: Literal["l2", "linf"]
    factor: float
    n: int
    fell: int
    no_answer: int
    low: float | None = None
    high: float | None = None


class Refuted(Line):
    """A picture whose certificate an attack showed to be wrong, with the certificate and the attack."""

    picture: str
    certificate: dict[str, JsonValue]
    attempt: dict[str, JsonValue]


class Direct(Line):
    """For how many pictures votes were counted without kept embeddings, and for how many they were the
    same.
    """

    n: int
    same: int


class Certified(OnData):
    """The whole line. `choosing` votes choose the label, `votes` others count, `ceiling_l2` is the radius of
    a decision that has all of them.
    """

    prompt_set: str
    denoise: str | None
    sigma: float
    choosing: int
    votes: int
    alpha: float
    seed: int
    n: int
    ceiling_l2: float
    right: Share
    abstained: Share
    certified: Share
    within: tuple[Within, ...]
    attacks: tuple[Attacks, ...] = ()
    refuted: tuple[Refuted, ...] = ()
    direct: Direct | None = None
    exploratory: bool
    cost: dict[str, int]
    command: str
    pictures: tuple[dict[str, JsonValue], ...] = ()

    @property
    def holds(self) -> bool:
        """Whether nothing speaks against the certificates: none was refuted, and both ways of counting votes
        agree.
        """
        return not self.refuted and (self.direct is None or self.direct.same == self.direct.n)
