"""What `robustclip train` is made of. A command's options -> settings (`config`, which a `selection` may
fill) -> `run`: pictures, `loop`, `publish`.

The methods themselves are `training.learning.objectives`; what a run published is measured again, and on
other pictures, by `training.measuring.evaluation`.
"""
