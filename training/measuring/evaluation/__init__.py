"""What `robustclip evaluate` is made of. Options -> a `question` -> what it is about (`subjects`) -> its
bill (`plan`) -> `rows` of numbers, each kept in a cell (`cells`).

What follows from rows: `comparison`, `checks`, `illusions`, `matrix`. What people see of them: `tables`,
`page`.
"""
