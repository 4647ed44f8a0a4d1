"""A network in front of a small fast memory: `memcompile.plan(..., options={"scratchpad": "512KiB"})`. The planner itself is
``solvers/scratchpad``.

the graph as operators and tensors      network.py
the plan, for the report                choose.py
problems and plans as JSON              text.py
the command                             command.py
"""
