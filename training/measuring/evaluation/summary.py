"""Rows with everything that follows from them."""

from collections.abc import Collection, Sequence

from training.measuring.evaluation.checks import headlines, masking_checks
from training.measuring.evaluation.comparison import compare, over_data, over_seeds
from training.measuring.evaluation.rows import Row
from training.measuring.schema.evaluation import Evaluation
from training.measuring.schema.rows import Result


def summary(rows: Sequence[Row], *, against: Collection[str] = (), per_picture: bool = False) -> Evaluation:
    """`against`: prompt sets, as they were asked for, that the others are compared with; none: all with all.
    `per_picture`: each row names its pictures, and which of them were right.
    """
    results = [_per_picture(row) if per_picture else row.result for row in rows]
    checks = masking_checks(results)
    wide = over_data(rows, against=against)
    found = {
        "paired": compare(rows, against=against),
        "over_seeds": over_seeds(rows),
        "over_data": wide.means,
        "paired_over_data": wide.paired,
        "left_out_over_data": wide.left_out,
        "checks": checks,
        "headlines": headlines(results, checks),
    }
    present = {name: lines for name, lines in found.items() if lines}
    return Evaluation.model_validate({"results": results, **present})


def _per_picture(row: Row) -> Result:
    own = {"pictures": row.pictures, "correct": row.correct.tolist()}
    return Result.model_validate({**row.result.as_json(), **own})
