"""Row-block streaming: regions of a graph that run block by block, so that their inner tensors are never whole.

rules.py     how rows pass through an operator
region.py    a set of nodes that runs block by block: its operands, its results, its body for one block
necks.py     regions of an inference graph
hidden.py    regions of a joint graph: forward, and backward with the hidden made again
program.py   what a region becomes: one node of the graph, a program that runs blocks
"""
