"""What the JSON of results holds, as models: one class for each kind of line, and one for each kind of file.
No tensors: the results page reads files through these, and is made in no time.
"""
