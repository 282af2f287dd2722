"""black-box: Square through the defense. It is given the scores of the deployed chain and no gradients; below
T2 it says that T2's gradients were no good.
"""

from robustclip.attacks import Square
from robustclip.threat import Linf
from training.threats.base import Effort, SearchLevel
from training.threats.judging import Victim


class BlackBox(SearchLevel):
    name = "black-box"
    knows = (
        "nothing is known but the scores that the deployed chain answers: Square; below T2 it says that T2's "
        "gradients were no good"
    )
    takes = ("queries", "draws")
    draws = 4  # shared by the two points that a query compares
    blind = "M6"
    loss = "margin"

    def attack(self, victim: Victim, ball: Linf, effort: Effort) -> Square:
        """Under a randomized defense a first success is luck: such a row goes on."""
        return Square(
            ball=ball,
            queries=effort.queries,
            redraw=victim.randomized,
            stop="never" if victim.randomized else "broken",
        )
