"""Stages of a network that run tile by tile: problems and solutions as plain data.

problem.py     what is to be tiled: operators, and which pixels each reads
stages.py      what a stage runs, what it leaves, what has to be there
grids.py       where tiles begin and end
sweep.py       intervals along one axis, of many grids at once
intervals.py   which rows and columns of every operator a tile makes and keeps
memory.py      bytes and operations of a stage
search.py      the cheapest stages within a number of bytes
"""
