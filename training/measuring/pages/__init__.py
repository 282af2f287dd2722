"""The results page, made from committed JSON. `results` puts it together; `defense`, `certified` and
`selection` make the sections that are no tables of plain rows.

`wording` has what the terminal says too. Nothing here imports torch, so that the page is made at once.
"""
