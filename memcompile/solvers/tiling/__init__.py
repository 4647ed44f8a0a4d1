"""Stages of a network that run tile by tile: problems and solutions as plain data.

problem.py     what is to be tiled: operators, and which pixels each reads
intervals.py   which rows and columns of every operator a tile makes and keeps
memory.py      bytes and operations of a stage
search.py      the cheapest stages within a number of bytes
"""
