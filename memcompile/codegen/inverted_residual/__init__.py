"""One kernel for an inverted residual: expand, depthwise, project, and the expanded tensor never in memory. In this order:

match.py      finds blocks in a graph of ATen operators
block.py      what a block is: convolutions, sizes, operands
naming.py     a block on its own, with names that say what things are
flatten.py    its pointwise parts as bodies on [pixels, channels]
affine.py     chains of sums and products with vectors as one of each
writer.py     the kernel function, and why it expands each pixel once a tap
configs.py    tile sizes within a GPU's limits
cost.py       FLOPs, bytes and seconds against kernels of their own
kernel.py     generate_inverted(block) -> InvertedKernel
"""
