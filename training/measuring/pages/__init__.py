"""The results page, made from committed JSON: `results` puts it together, `defense`, `certified` and
`selection` are its tables that are not plain rows.

`wording` and `difference` say a number and whether a difference is one, here and on a terminal. No tensors:
the page is made in no time.
"""
