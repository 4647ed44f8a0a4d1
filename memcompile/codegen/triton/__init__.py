"""Fused Triton kernels from FX graphs: the low-rank chain "expand, pointwise, contract", and more. Read in this order:

pointwise.py       operators as Triton expressions, one line each
chain.py           what stays whole in registers, what exists tile by tile, in which loops
tile.py            loads, products, expressions and stores of one tile
rows_kernel.py     K1: one program a block of rows
decode_kernel.py   K3: few rows, columns split over programs
module.py          the Python module around the kernels
kernel.py          generate(body, rows) -> GeneratedKernel
configs.py         tile sizes within a GPU's limits
tune.py            the fastest of them, timed
inverted/          the same for inverted residuals: expand, depthwise, project
compile.py         compile_for(kernel, "cuda:90") without a GPU
"""
