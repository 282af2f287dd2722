"""The probe: attack one deployed decision, and say what came of it. What is deployed -> what to try -> trials
-> verdict.

run          `probe` and `events`: puts all below together; start reading here
options      what a caller asks for
plan         the trials that the options mean, and their price before any work
victim       the deployed decision as one value, and its description in the report
attacker     the scores that each level of knowledge may attack
served       the decision as it is served: judges every candidate afresh, as pixels and as PNG
trials       runs one attack and keeps what it found
examination  checks for masked gradients, and the self-test, where nothing broke the decision
records      turns attacks into records of the report
verdict      the rule from records and checks to `broken`, `not-broken-within-budget` or `inconclusive`
events       what a probe says while it runs
"""
