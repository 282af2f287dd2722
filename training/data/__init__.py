"""Pictures and their words, before anything looks at them: folders and torchvision's sets to labelled
pictures, of which shots and subsets are drawn.

A preset names data sets, a source is one that is measured on; `folders` and `downloads` read it, `classes`
chooses among its labels, `sampling` among its pictures, `views` crops them.
"""
