"""Threat levels: what an attacker knows, and accuracy against it over a data set.

`base` says what a level is, in a ball or not, `judging` how a victim is judged;
`bank` makes what is attacked once for many: the embeddings that prompts are tuned on, and pictures against
other prompts. Finished parts are kept on disk under a digest of all that they
depend on.

Below is the table of levels, in the order of the results page. A new level is a file beside this and a line
here: `robustclip evaluate`, `train`, `select` and `suite`, their plans and checks, and all pages then have
it. A file is named and not imported, because the results page reads the order from here and is made without
tensors.
"""

from typing import Annotated, TypeAlias

from pydantic import AfterValidator

THREAT_LEVELS = {
    "clean": "training.threats.clean:Clean",
    "T0": "training.threats.t0:T0",
    "T0b": "training.threats.t0b:T0b",
    "T1": "training.threats.t1:T1",
    "static": "training.threats.static:Static",
    "T2": "training.threats.t2:T2",
    "black-box": "training.threats.black_box:BlackBox",
    "T3": "training.threats.t3:T3",
}


def known(name: str) -> str:
    """The name, if it is in the table. Raises ValueError with the names that are."""
    if name not in THREAT_LEVELS:
        raise ValueError(f"expected one of {', '.join(THREAT_LEVELS)}")
    return name


Threat: TypeAlias = Annotated[str, AfterValidator(known)]
