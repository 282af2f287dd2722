"""Several trainings and the cells that judge them, as one `campaign` that a `ledger` lets go on after a kill;
a `forecast` says before what it takes.

`select` compares `candidates` and records the winner; `suite` fills the table of a `declaration`.
"""
