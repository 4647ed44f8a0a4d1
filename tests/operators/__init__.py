"""PyTorch's own samples of every operator, module and optimizer through the backend, against eager: ``make operators``.

    samples of one entry as data                cases.py
    a small graph around some of them           program.py, optimizer.py
    run it eagerly, planned, compiled           ways.py
    is it the same?                             compare.py
    verdicts, bisection, whose fault            judge.py
    a process for each entry, with a time limit workers.py
    what came out, counted                      summary.py

The level "planned" is the whole backend but the kernels: capture, plan at the smallest budget, extraction, verification, lowering
and arena, then the planned graphs are run by an interpreter. The level "compiled" runs the kernels.
"""
