"""From dense linear layers to low-rank ones: `memcompile.compress`. Importing this package does not import torch.

which layers, and why not the others       layers.py
how many ranks each gets                   ranks.py
what comes into them                       calibration.py
the factors                                factor.py
the layer that holds them                  linear.py
all of it, in order                        compress.py
what came of it                            report.py
"""
