"""Storages that move between the device and slower, larger memories while a step runs.

Read in this order: ``tiers`` (what the user chose), ``engine`` (what compiled code calls), ``disk`` and ``host`` (the stores),
``requests`` (the I/O threads), ``file``, ``extents``, ``checksum``, ``memory`` (one mechanism each), ``speed`` (measurement).
"""
