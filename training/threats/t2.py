"""T2: everything is known. Cross-entropy is raised through prompts and defense.

Without a randomized defense a picture leaves at its first success, so that what is right after rounding to 8
bits is judged on the narrowest points: an upper bound.
"""

from robustclip.attacks import PGD
from robustclip.errors import InvalidInput
from robustclip.threat import Linf
from training.data.sampling import HELD_OUT
from training.threats.base import Effort, SearchLevel
from training.threats.judging import Victim


class T2(SearchLevel):
    name = "T2"
    knows = "everything is attacked: cross-entropy, PGD-100, through prompts and defense"
    takes = ("steps", "restarts", "search", "draws")
    loss = "cross_entropy"

    def attack(self, victim: Victim, ball: Linf, effort: Effort) -> PGD:
        """Under a randomized defense the first success is a lucky average: such a row goes on to its worst
        point.
        """
        return PGD(
            ball=ball,
            steps=effort.steps,
            step=ball.radius / 4,
            starts=("random",),
            restarts=effort.restarts,
            stop="never" if victim.randomized else "broken",
        )

    def check(self, effort: Effort, *, measured: bool, reported: bool) -> None:
        """Fewer steps flatter a prompt set. A defense may be too dear for all of them: its rows say what they
        had.
        """
        if reported:
            check_steps(effort)


def check_steps(effort: Effort) -> None:
    """InvalidInput for other steps than the usual ones."""
    usual = Effort.model_fields["steps"].default
    if effort.steps != usual:
        raise InvalidInput(
            f"T2 has {usual} steps where it is reported without a defense; others are for choosing settings, "
            f"and for dear defenses.",
            field="--steps",
            help=f"Leave it out, or measure on --split {HELD_OUT}, or behind --defense alone, without T3.",
        )
