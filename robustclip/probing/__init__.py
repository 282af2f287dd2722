"""The probe: attack one deployed decision and report the result. Options -> trials -> verdict.

The victim is a `robustclip.deployed.DeployedClassifier`.

run          `probe` and `events`: what callers use; start reading here
session      one probe on its way: puts all below together
options      what a caller may choose
plan         the trials that follow from the options, and their cost before any work
attacker     the scores that each level of knowledge may attack
served       the decision as it is served: judges each candidate again, as pixels and as PNG
trials       runs one attack, or the search for the smallest radius
examination  checks for masked gradients, and the self-test, where nothing broke the decision
records      turns attacks into records of the report
conclusion   the question and the whole report
verdict      the rule from records and checks to `broken`, `not-broken-within-budget` or `inconclusive`
events       what a probe says while it runs
"""
