"""Weights that are not in memory: each is read from a file just before it is used.

Read in this order: ``offloading`` (what users call), ``modules`` (how a parameter becomes a read), ``weight`` and ``store``
(what is read, by whom), ``checkpoint`` (safetensors files, read in place), ``staying`` (what a model on the meta device needs
beside), ``speed`` (how fast). The operators are in ``runtime/transfers/fetch_ops.py``, the plan of a graph in ``passes/weights/stream.py``.
"""
