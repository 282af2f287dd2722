"""Labelled pictures from folders and from torchvision, and the choices among them.

A preset names data sets; a source is one to measure on. `folders` and `downloads` read it, `classes` chooses
among its labels, `sampling` among its pictures, and `views` crops them.
"""
