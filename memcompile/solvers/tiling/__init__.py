"""Stages of a network that run tile by tile: problems and solutions as plain data.

search.py      the cheapest stages within a number of bytes: read this first
problem.py     what is to be tiled: operators, and which pixels each reads
stages.py      what a stage runs, what it leaves, what has to be there
grids.py       where tiles begin and end
sweep.py       intervals along one axis, of many grids at once
intervals.py   the tiles of a stage: which rows and columns of every operator each makes and keeps
memory.py      bytes and operations of a stage, by replay
lives.py       when results die, and what is alive at each cut
layers.py      bytes of every operator in every tile of many grids
ranges.py      costs of all stages that end at one cut
paths.py       plans as paths over cuts
again.py       problems in which results are made again in place of being kept
"""
