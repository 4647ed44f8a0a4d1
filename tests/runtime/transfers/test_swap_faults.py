"""What can go wrong between the device and a disk, made to happen: each a clear error, never a wrong number."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from memcompile.errors import SwapCorruptedError, SwapError, TierFullError, TierUnavailableError
from memcompile.runtime.transfers.file import PREFIX
from memcompile.runtime.transfers.tiers import DiskTier, parse_tiers
from tests.swapping import MIB, Gate, disk_engine, open_files, random_bytes, read_back, round_trip, settle, store_of

PRELUDE = """
import os, signal, sys, torch
from pathlib import Path
from memcompile.runtime.transfers.engine import Engine
from memcompile.runtime.transfers.tiers import DiskTier
engine = Engine((DiskTier(Path(sys.argv[1]), 2**30),))
"""


def run_script(script: str, folder: Path, prelude: str = PRELUDE) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", prelude + script, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def failing(number: int) -> Any:
    def fail(*_: Any, **__: Any) -> int:
        raise OSError(number, os.strerror(number))

    return fail


# --- full ------------------------------------------------------------------------------------------------------------


def test_tier_that_is_full_says_how_much_is_missing_and_recovers(tmp_path: Path) -> None:
    engine = disk_engine(tmp_path, 8 * MIB)
    first = engine.out(random_bytes(6 * MIB))
    with pytest.raises(TierFullError, match="choose another directory") as caught:
        engine.out(random_bytes(4 * MIB))
    assert 2 * MIB - 8192 <= caught.value.missing_bytes <= 2 * MIB
    read_back(engine, first, torch.zeros(6 * MIB, dtype=torch.uint8))
    del first
    assert round_trip(engine, random_bytes(8 * MIB)).equal(random_bytes(8 * MIB))


def test_place_that_is_still_written_to_is_not_given_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, gate, real = disk_engine(tmp_path), Gate(os.pwrite), os.pwrite
    monkeypatch.setattr(os, "pwrite", gate)
    ticket = engine.out(random_bytes(MIB, 1))
    assert gate.reached.wait(60)
    monkeypatch.setattr(os, "pwrite", real)
    del ticket
    other, dest = engine.out(random_bytes(MIB, 2)), torch.zeros(MIB, dtype=torch.uint8)
    engine.out_wait(other)
    gate.open()
    settle(engine)
    assert read_back(engine, other, dest).equal(random_bytes(MIB, 2))


def test_full_tier_waits_for_the_place_of_a_dead_ticket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, gate, real = disk_engine(tmp_path, 8 * MIB), Gate(os.pwrite), os.pwrite
    monkeypatch.setattr(os, "pwrite", gate)
    ticket = engine.out(random_bytes(5 * MIB, 1))
    assert gate.reached.wait(60)
    monkeypatch.setattr(os, "pwrite", real)
    del ticket
    threading.Timer(0.3, gate.open).start()
    assert round_trip(engine, random_bytes(5 * MIB, 2)).equal(random_bytes(5 * MIB, 2))


def test_full_disk_is_an_error_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memcompile.runtime.transfers.disk.GROWTH_BYTES", 10 * MIB)
    engine = disk_engine(tmp_path)
    round_trip(engine, random_bytes(MIB))
    assert os.fstat(store_of(engine).file.fd).st_blocks * 512 >= 10 * MIB  # taken, not promised
    monkeypatch.setattr(os, "posix_fallocate", failing(errno.ENOSPC))
    round_trip(engine, random_bytes(10 * MIB))
    with pytest.raises(TierFullError, match="the disk is full"):
        engine.out(random_bytes(11 * MIB))
    monkeypatch.undo()
    assert round_trip(engine, random_bytes(11 * MIB)).equal(random_bytes(11 * MIB))
    with pytest.raises(TierFullError):
        engine.out(torch.empty(1024 * MIB, dtype=torch.uint8))


def test_disk_with_a_little_room_is_used_to_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, real = disk_engine(tmp_path), os.posix_fallocate

    def grudging(fd: int, offset: int, length: int) -> None:
        if length > 2 * MIB:
            raise OSError(errno.ENOSPC, "full")
        real(fd, offset, length)

    monkeypatch.setattr(os, "posix_fallocate", grudging)
    assert round_trip(engine, random_bytes(MIB)).equal(random_bytes(MIB))


def test_limit_of_the_file_size_is_a_full_tier(tmp_path: Path) -> None:
    script = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (4 * 2**20, 4 * 2**20))
ticket = engine.out(torch.ones(2**20, dtype=torch.uint8))
engine.out_wait(ticket)
engine.out(torch.ones(2**23, dtype=torch.uint8))
"""
    done = run_script(script, tmp_path)
    assert "TierFullError: the swap file" in done.stderr
    assert "a file may not be that large" in done.stderr


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_disk_that_fills_up_under_a_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    engine = disk_engine(tmp_path)
    dest = torch.zeros(5 * MIB, dtype=torch.uint8)
    monkeypatch.setattr(os, "pwrite", failing(number))
    ticket: Any = engine.out(random_bytes(5 * MIB))
    engine.into(ticket, dest)
    wait: Callable[[], None]
    for wait in (lambda: engine.out_wait(ticket), lambda: engine.out_wait(ticket), lambda: engine.into_wait(ticket, dest)):
        with pytest.raises(TierFullError):
            wait()
    monkeypatch.undo()
    engine.into(ticket, dest)  # still not there
    with pytest.raises(TierFullError):
        engine.into_wait(ticket, dest)
    ticket = None
    assert engine.live_bytes() == 0
    assert round_trip(engine, random_bytes(5 * MIB)).equal(random_bytes(5 * MIB))


def test_tickets_in_the_traceback_of_an_exception_make_room(tmp_path: Path) -> None:
    engine = disk_engine(tmp_path, 8 * MIB)

    def step() -> None:
        ticket = engine.out(random_bytes(6 * MIB))
        try:
            raise ValueError("the user's")
        except ValueError as error:
            kept = error  # the frame holds the error, the error the frame
            assert kept.__traceback__ is not None and ticket is not None

    for _ in range(3):
        step()
    assert round_trip(engine, random_bytes(6 * MIB)).equal(random_bytes(6 * MIB))


# --- directories -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "word"), [(errno.EROFS, "Read-only"), (errno.EACCES, "denied")])
def test_read_only_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, word: str) -> None:
    # root may write to any directory, so that chmod alone would show nothing where tests run as root
    monkeypatch.setattr(os, "open", failing(number))
    for start in (lambda: disk_engine(tmp_path), lambda: parse_tiers({"disk": str(tmp_path)})):
        with pytest.raises(TierUnavailableError, match=f"{tmp_path}.*{word}"):
            start()


@pytest.mark.skipif(os.getuid() == 0, reason="root may write to any directory")
def test_directory_without_the_right_to_write(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(TierUnavailableError, match="denied"):
        disk_engine(tmp_path)
    tmp_path.chmod(0o700)


def test_missing_directory_and_a_file_instead(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name, reason in (("none", "No such file"), ("file", "Not a directory")):
        for start in (
            lambda name=name: disk_engine(tmp_path / name),
            lambda name=name: parse_tiers({"disk": str(tmp_path / name)}),
        ):
            with pytest.raises(TierUnavailableError, match=f"{name}.*{reason}"):
                start()
    assert open_files(tmp_path) == []


def test_directory_that_becomes_read_only_while_it_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = disk_engine(tmp_path)
    monkeypatch.setattr(os, "pwrite", failing(errno.EROFS))
    ticket = engine.out(random_bytes(MIB))
    with pytest.raises(TierUnavailableError, match="Read-only"):
        engine.out_wait(ticket)


# --- transfers -------------------------------------------------------------------------------------------------------


def test_short_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = disk_engine(tmp_path)
    ticket, dest = engine.out(random_bytes(5 * MIB)), torch.zeros(5 * MIB, dtype=torch.uint8)
    engine.out_wait(ticket)
    os.ftruncate(store_of(engine).file.fd, 2 * MIB)
    engine.into(ticket, dest)
    with pytest.raises(SwapCorruptedError, match=f"{tmp_path}.*cannot be read"):
        engine.into_wait(ticket, dest)


def test_transfers_in_parts_are_carried_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, write, read = disk_engine(tmp_path), os.pwrite, os.preadv

    def half(data: Any) -> Any:
        return data[: max(len(data) // 8192 * 4096, 4096)]

    def read_less(fd: int, views: list[Any], offset: int) -> int:
        moved = read(fd, [half(views[0])], offset)
        return moved - 1 if moved > 4096 else moved  # not even a whole page

    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: write(fd, half(data), offset))
    monkeypatch.setattr(os, "preadv", read_less)
    for size_bytes in (100, 300_001, 5 * MIB):
        assert round_trip(engine, random_bytes(size_bytes)).equal(random_bytes(size_bytes))


def test_write_that_makes_no_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = disk_engine(tmp_path)
    monkeypatch.setattr(os, "pwrite", lambda *_: 0)
    ticket = engine.out(random_bytes(MIB))
    with pytest.raises(TierFullError, match="takes no more bytes"):
        engine.out_wait(ticket)


def test_failing_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, real = disk_engine(tmp_path), os.preadv
    ticket, dest = engine.out(random_bytes(5 * MIB)), torch.zeros(5 * MIB, dtype=torch.uint8)
    monkeypatch.setattr(os, "preadv", failing(errno.EIO))
    engine.into(ticket, dest)
    with pytest.raises(TierUnavailableError, match="Input/output error"):
        engine.into_wait(ticket, dest)
    monkeypatch.setattr(os, "preadv", real)
    assert read_back(engine, ticket, dest).equal(random_bytes(5 * MIB))  # a second try may do better


@pytest.mark.parametrize("at", [0, 3 * MIB + 1, 5 * MIB - 8192])
def test_corrupted_file(tmp_path: Path, at: int) -> None:
    engine = disk_engine(tmp_path)
    ticket, dest = engine.out(random_bytes(5 * MIB)), torch.zeros(5 * MIB, dtype=torch.uint8)
    engine.out_wait(ticket)
    with open(f"/proc/self/fd/{store_of(engine).file.fd}", "r+b") as file:  # noqa: PTH123
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 16]))
    engine.into(ticket, dest)
    with pytest.raises(SwapCorruptedError, match=f"{tmp_path}.*checksum.*last checkpoint"):
        engine.into_wait(ticket, dest)


def test_block_of_an_earlier_tensor_in_the_same_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = disk_engine(tmp_path)
    for seed in range(2):
        if seed:
            monkeypatch.setattr(os, "pwrite", lambda _fd, data, _offset: len(data))  # a disk that forgets the second one
        ticket, dest = engine.out(random_bytes(MIB, seed)), torch.zeros(MIB, dtype=torch.uint8)
        engine.out_wait(ticket)
        engine.into(ticket, dest)
        if seed:
            with pytest.raises(SwapCorruptedError):
                engine.into_wait(ticket, dest)
        else:
            engine.into_wait(ticket, dest)


def test_memory_that_changes_under_a_write_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, gate = disk_engine(tmp_path), Gate(os.pwrite)
    if not store_of(engine).file.direct:
        pytest.skip("buffered writes of unaligned memory copy it first")
    monkeypatch.setattr(os, "pwrite", gate)
    tensor, dest = random_bytes(MIB), torch.zeros(MIB, dtype=torch.uint8)
    ticket = engine.out(tensor)
    assert gate.reached.wait(60)
    tensor[MIB // 2] ^= 1  # before out_wait: the caller's mistake
    gate.open()
    engine.into(ticket, dest)
    with pytest.raises(SwapCorruptedError):
        engine.into_wait(ticket, dest)


def test_unforeseen_error_in_a_thread_reaches_who_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = disk_engine(tmp_path)

    def surprise(*_: object) -> int:
        raise MemoryError("no staging memory")

    monkeypatch.setattr("memcompile.runtime.transfers.disk.block_sum", surprise)
    ticket = engine.out(random_bytes(5 * MIB))
    with pytest.raises(MemoryError, match="no staging memory"):
        engine.out_wait(ticket)
    monkeypatch.undo()
    assert round_trip(engine, random_bytes(5 * MIB)).equal(random_bytes(5 * MIB))


# --- processes and steps that end early --------------------------------------------------------------------------------


@pytest.mark.parametrize("nameless", [True, False], ids=["O_TMPFILE", "unlinked"])
def test_killed_process_leaves_nothing(tmp_path: Path, nameless: bool) -> None:
    named = "" if nameless else f"import os\nos.O_TMPFILE = 0o{os.O_DIRECTORY:o}\n"  # a directory opened for writing: EISDIR
    script = """
ticket = engine.out(torch.ones(2**25, dtype=torch.uint8))
engine.into(ticket, torch.zeros(2**25, dtype=torch.uint8))
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = run_script(script, tmp_path, named + PRELUDE)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_name_that_a_killed_process_left_is_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / f"{PREFIX}0123").write_bytes(b"")
    (tmp_path / "mine.txt").write_text("the user's")
    monkeypatch.setattr(os, "O_TMPFILE", os.O_DIRECTORY)
    engine = disk_engine(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    assert round_trip(engine, random_bytes(MIB)).equal(random_bytes(MIB))


def test_exception_between_out_and_in_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = disk_engine(tmp_path)
    reading = Gate(os.preadv)
    monkeypatch.setattr(os, "preadv", reading)

    def step(reads: bool) -> None:
        tensor = random_bytes(5 * MIB)
        ticket, dest = engine.out(tensor), torch.zeros(5 * MIB, dtype=torch.uint8)
        if reads:
            engine.into(ticket, dest)
            assert reading.reached.wait(60)
        raise ValueError("the user's")

    for reads in (False, True):
        with pytest.raises(ValueError, match="the user's"):
            step(reads)
    reading.open()
    settle(engine)
    assert engine.live_bytes() == 0
    assert round_trip(engine, random_bytes(5 * MIB)).equal(random_bytes(5 * MIB))


def test_errors_hold_no_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = disk_engine(tmp_path)
    monkeypatch.setattr(os, "pwrite", failing(errno.ENOSPC))

    def step() -> None:
        ticket = engine.out(random_bytes(5 * MIB))
        engine.out_wait(ticket)

    for _ in range(2):
        with pytest.raises(SwapError):
            step()
    assert engine.live_bytes() == 0


def test_file_system_without_direct_io(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    refused: list[int] = []

    def picky(fd: int, data: Any, offset: int) -> int:
        if len(refused) < 3:  # each alignment that is tried
            refused.append(len(data))
            raise OSError(errno.EINVAL, "no")
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", picky)
    engine = disk_engine(tmp_path)
    if len(refused) == 3:  # else there was no direct I/O to refuse
        assert not store_of(engine).file.direct
    assert round_trip(engine, random_bytes(5 * MIB)).equal(random_bytes(5 * MIB))


def test_tier_is_measured_only_with_room(tmp_path: Path) -> None:
    from memcompile.runtime.transfers.speed import measure_tier

    with pytest.raises(TierFullError):
        measure_tier(DiskTier(tmp_path, 4096), refresh=True)
