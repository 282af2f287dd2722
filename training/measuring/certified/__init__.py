"""What `robustclip certified` is made of. `subjects` behind a vote -> `certification`, which settles each
picture and its `attack` -> `facts`.
"""
