"""Chains of inverted residuals as one C++ kernel for the CPU: rows stream from block to block, wide tensors are never whole.

chain.py       a chain: which rows of which image are kept, and how many
pointwise.py   pointwise operators as C++ expressions
stages.py      what follows each convolution, as expressions and the vectors that they read
layout.py      where weights and rows lie in the workspace
writer.py      the kernel's source around rows.h
build.py       compiles and loads it
kernel.py      generate_rows(chain) -> RowsKernel
cost.py        seconds and bytes against library calls
choose.py      which blocks become which chains
"""
