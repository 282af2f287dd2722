"""What the JSON of results holds, as models: a class for each kind of line, and one for each kind of file.
Nothing here imports torch: the results page reads files through these, and is made at once.
"""
