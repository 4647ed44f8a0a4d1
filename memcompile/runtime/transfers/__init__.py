"""Tensors that move between the device and slower, larger memories while a step runs.

Read in this order: ``tiers`` (what the user chose), ``operators`` and ``sources`` (what compiled code calls, and what its keys
stand for); ``engine`` with its stores ``disk`` and ``host`` (storages that leave in a step: written and read once, with sums);
``weight`` with ``weight_store`` (written once, read in every step by several graphs); ``requests`` (the I/O threads of both),
``file``, ``extents``, ``checksum``, ``memory``, ``pinned``, ``cuda`` (one mechanism each); ``speed``, ``weight_speed``,
``beside`` (measurement).
"""
