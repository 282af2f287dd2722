"""The probe: attack one deployed decision, and say what came of it. What to try -> trials -> verdict.

The victim is a `robustclip.deployed.DeployedClassifier`.

run          `probe` and `events`: what callers use; start reading here
session      one probe on its way: puts all below together
options      what a caller asks for
plan         the trials that the options mean, and their price before any work
attacker     the scores that each level of knowledge may attack
served       the decision as it is served: judges every candidate afresh, as pixels and as PNG
trials       runs one attack and keeps what it found
examination  checks for masked gradients, and the self-test, where nothing broke the decision
records      turns attacks into records of the report
conclusion   what was asked, and the whole report
verdict      the rule from records and checks to `broken`, `not-broken-within-budget` or `inconclusive`
events       what a probe says while it runs
"""
