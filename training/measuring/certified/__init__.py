"""What `robustclip certified` is made of. `subjects` behind a vote and attacks on
them -> `certification`, which settles each picture -> `facts`.
"""
