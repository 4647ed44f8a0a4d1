"""Packing instances as text, in the format of google/minimalloc: ``id,lower,upper,size[,offset]`` with a header."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from memcompile.solvers.places.packing import Buffer, PackingError, check

COLUMNS = ("id", "lower", "upper", "size")


def read_csv(text: str) -> list[Buffer]:
    """The buffers of an instance; an ``offset`` is one that the buffer has to lie at. Raises ``PackingError``."""
    reader = csv.DictReader(io.StringIO(text), skipinitialspace=True)
    missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
    if missing:
        raise PackingError(f"no column {', '.join(missing)}: the first line names the columns, id,lower,upper,size[,offset]")
    buffers = []
    for row in reader:
        try:
            lower, upper, size = (int(row[name]) for name in COLUMNS[1:])
            offset = int(row["offset"]) if row.get("offset") else None
        except (TypeError, ValueError):
            raise PackingError(f"line {reader.line_num}: not {','.join(reader.fieldnames or ())} in whole numbers") from None
        buffers.append(Buffer(row["id"], lower, upper, size, offset))
    check(buffers)
    return buffers


def write_csv(buffers: Sequence[Buffer], offsets: Sequence[int]) -> str:
    """An instance with the offsets of its buffers. Raises ``PackingError`` for aliases: the format has no column for them."""
    for buffer in buffers:
        if buffer.alias is not None:
            raise PackingError(f"{buffer.name}: an alias of {buffer.alias}, which this format cannot say")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, "offset"])
    for buffer, offset in zip(buffers, offsets, strict=True):
        writer.writerow([buffer.name, buffer.lower, buffer.upper, buffer.size, offset])
    return text.getvalue()
