"""A small fast memory in front of a large one: order, replacement and offsets together. Start with ``search.py``."""
