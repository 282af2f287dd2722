"""Checks for masked gradients: does the decision withstand the attack, or did the attack itself fail?

symptoms   the table: code, name, threshold, sentence and price of every check, and what a check returns
checks     `examine` runs all checks that fit one attacked decision; `bill` is the most that they can cost
gradients  M1 to M4 and M14: are there gradients, are they true, does the attack climb along them?
strength   M5 to M8 and M13: does a weaker attack succeed where the strong one failed?
forwards   M9 to M12: does the same input get the same answer?
selftest   the active self-test: the attack is given problems that have a solution
"""
