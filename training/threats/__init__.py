"""The table of threat levels, in the order of the results page. A new level is a file beside this and a line
here: `robustclip evaluate`, `train`, `select` and `suite`, their plans and checks, and all pages then have
it.

A file is named and not imported: the results page reads the order from here, and is made without tensors.
"""

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
