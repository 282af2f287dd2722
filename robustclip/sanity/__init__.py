"""Checks for masked gradients: is "not broken" a property of the decision, or of an attack that could not
see?

checks     `examine` runs all checks that fit one attacked decision; `bill` says before what they may cost
base       what a check is: its code and name, its threshold, its sentence, its price
gradients  M1 to M4 and M14: are there gradients, are they true, does the attack climb along them?
strength   M5 to M8 and M13: do weaker attacks find what the strong one missed?
forwards   M9 to M12: does the same question get the same answer?
selftest   the active self-test: the attack is given problems that have an answer
"""
