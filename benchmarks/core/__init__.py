"""What the benchmarks share: rows and their CSV, ways and their steps, worker processes and turns, tables, command lines."""
