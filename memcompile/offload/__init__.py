"""Weights that are not in memory: each is read from a file just before it is used.

Read in this order: ``offloading`` (what users call), ``modules`` (how a parameter becomes a read), ``checkpoint`` (safetensors
files, read in place), ``staying`` (what a model on the meta device needs beside). What is read, by whom and how fast is in
``runtime/transfers/``, the plan of a graph in ``passes/weights/``.
"""
