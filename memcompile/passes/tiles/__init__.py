"""Networks of images that run tile by tile, so that their large images are never whole.

planes.py       where rows and columns lie in a tensor, which pixels are read
operators.py    how an operator runs on a rectangle: rules.py, windows.py, resampling.py, reshaping.py; reductions.py
wrapping.py     circular padding as one gather
network.py      a captured graph as a problem for solvers/tiling
choose.py       stages by the planner's model, then by the exact peak of the lowered code: read this first
stage.py        one tile of a stage: what it reads, runs, keeps and writes
bodies.py       graphs of tiles; activations.py, folding.py and products.py make them few library calls
program.py      a stage as one node of the graph
"""
