"""The tiers that a user names, their measured numbers, and the budget of pinned memory."""

import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from memcompile.errors import InvalidOptionError, TierFullError, TierUnavailableError, UnknownOptionError
from memcompile.runtime.transfers import cuda as cuda_copies
from memcompile.runtime.transfers import host, speed
from memcompile.runtime.transfers.engine import Engine
from memcompile.runtime.transfers.host import HostStore
from memcompile.runtime.transfers.pinned import GRAIN_BYTES, PinnedPool
from memcompile.runtime.transfers.speed import TierModel, measure_tier
from memcompile.runtime.transfers.tiers import DiskTier, HostTier, parse_tiers
from tests.swapping import MIB, random_bytes, round_trip

GIB = 1024**3
SAMPLE = TierModel("disk", 3e9, 2e9, 1e-4)
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


# --- options ---------------------------------------------------------------------------------------------------------


def test_tiers_are_read_fastest_first(tmp_path: Path) -> None:
    assert parse_tiers({"disk": f"{tmp_path}:64GiB", "host": "16GiB"}) == (HostTier(16 * GIB), DiskTier(tmp_path, 64 * GIB))
    assert parse_tiers({"host": 1000}) == (HostTier(1000),)
    assert parse_tiers(None) == parse_tiers({}) == ()
    tiers = parse_tiers({"disk": f"{tmp_path}:1000", "host": "1GB"})
    assert parse_tiers({tier.name: tier.to_option() for tier in tiers}) == tiers


def test_directory_without_a_size_may_take_what_is_free(tmp_path: Path) -> None:
    for value in (str(tmp_path), tmp_path):
        (tier,) = parse_tiers({"disk": value})
        assert tier == DiskTier(tmp_path, tier.capacity_bytes)
        assert tier.capacity_bytes > 0
    colon = tmp_path / "a:b"
    colon.mkdir()
    assert parse_tiers({"disk": f"{colon}:1MiB"}) == (DiskTier(colon, MIB),)
    (tier,) = parse_tiers({"disk": str(colon)})
    assert isinstance(tier, DiskTier) and tier.directory == colon
    assert list(tmp_path.iterdir()) == [colon]


def test_directory_in_the_folder_of_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scratch").mkdir()
    monkeypatch.chdir(tmp_path)
    assert parse_tiers({"disk": "scratch:1MiB"}) == (DiskTier(tmp_path / "scratch", MIB),)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"host": "lots"}, "not a number"),
        ({"host": 0}, "more than nothing"),
        ({"host": 1.5}, "float is not a size"),
        ({"host": True}, "truth value"),
        ({"disk": "/tmp:lots"}, "not a number"),
        ({"disk": "/tmp:0"}, "more than nothing"),
        ({"disk": ":64GiB"}, "no directory"),
        ({"disk": ""}, "a directory"),
        ({"disk": 64}, "a directory"),
        ("/scratch", "a mapping"),
    ],
)
def test_values_that_make_no_sense(value: object, message: str) -> None:
    with pytest.raises(InvalidOptionError, match=message):
        parse_tiers(value)


def test_unknown_tier() -> None:
    with pytest.raises(UnknownOptionError, match=r"options\['swap'\] has no entry 'dsk'. Did you mean 'disk'"):
        parse_tiers({"dsk": "/tmp"})


# --- speed -----------------------------------------------------------------------------------------------------------


def test_measured_numbers_are_plausible_and_leave_no_trace(
    own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "LIMIT_S", 0.02)
    folder = tmp_path / "scratch"
    folder.mkdir()
    state = torch.get_rng_state()
    model = measure_tier(DiskTier(folder, 64 * MIB))
    assert model.name == "disk"
    assert 1e6 < model.write_bytes_per_s < 1e12
    assert 1e6 < model.read_bytes_per_s < 1e12
    assert 1e-7 < model.latency_s < 1
    assert torch.get_rng_state().equal(state)
    assert list(folder.iterdir()) == []


def test_measured_once_for_each_file_system(own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def measured(tier: object) -> TierModel:
        asked.append(tier)
        return SAMPLE

    monkeypatch.setattr(speed, "_measure", measured)
    (tmp_path / "other").mkdir()
    for tier in (DiskTier(tmp_path, MIB), DiskTier(tmp_path / "other", GIB)):  # of one file system, of different sizes
        assert measure_tier(tier) == SAMPLE
    assert len(asked) == 1
    measure_tier(DiskTier(tmp_path, MIB), refresh=True)
    assert len(asked) == 2
    monkeypatch.setattr(speed, "_file_system", lambda _: ["/elsewhere"])
    measure_tier(DiskTier(tmp_path, MIB))
    assert len(asked) == 3


def test_file_system_of_a_directory(tmp_path: Path) -> None:
    number = tmp_path.stat().st_dev
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"36 25 {number >> 8 & 0xFFF}:{number & 0xFF} / /mnt/x rw shared:1 - ext4 /dev/vda rw\n")
    found = speed._file_system(tmp_path, mounts)
    assert found == ["/mnt/x", "ext4", "/dev/vda"] or ":" in found[0]
    assert speed._file_system(tmp_path, tmp_path / "none") == speed._file_system(tmp_path, Path("/dev/null"))


# --- host ------------------------------------------------------------------------------------------------------------


class Memory:
    """Stands in for pinned memory; counts what is there."""

    def __init__(self) -> None:
        self.bytes = self.made = 0

    def __call__(self, size_bytes: int) -> tuple[Tensor, Callable[[], None]]:
        self.bytes += size_bytes
        self.made += 1

        def free() -> None:
            self.bytes -= size_bytes

        return torch.zeros(size_bytes, dtype=torch.uint8), free


def test_buffers_of_one_step_serve_the_next() -> None:
    memory = Memory()
    pool = PinnedPool(100 * GRAIN_BYTES, memory)
    for _ in range(3):
        held = [pool.take(size) for size in (1, 5 * GRAIN_BYTES, 10 * GRAIN_BYTES + 1)]
        assert len({id(buffer) for buffer in held}) == 3
        for buffer in held:
            pool.give(buffer)
    assert memory.made == 3
    assert pool.allocated_bytes == pool.idle_bytes == memory.bytes == 17 * GRAIN_BYTES


def test_exhausted_host_budget_says_how_much_is_missing() -> None:
    memory = Memory()
    pool = PinnedPool(10 * GRAIN_BYTES, memory)
    held = pool.take(8 * GRAIN_BYTES)
    with pytest.raises(TierFullError, match="used up") as caught:
        pool.take(5 * GRAIN_BYTES)
    assert caught.value.missing_bytes == 3 * GRAIN_BYTES
    pool.give(held)
    pool.take(5 * GRAIN_BYTES)  # an idle buffer of another size makes room
    assert memory.bytes == pool.allocated_bytes == 5 * GRAIN_BYTES
    pool.release()
    assert memory.bytes == 5 * GRAIN_BYTES  # what is held stays


def test_host_tier_is_for_tensors_of_a_gpu(tmp_path: Path) -> None:
    engine = Engine((HostTier(MIB), DiskTier(tmp_path, MIB)))
    with pytest.raises(TierUnavailableError, match=r"host memory. Swap tensors of the CPU to disk"):
        engine.out(torch.zeros(3), "host")
    assert round_trip(engine, random_bytes(100)).equal(random_bytes(100))


class Clock:
    """Stands in for the streams and events of a GPU: copies are made at once, what waits for what is written down."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.journal: list[str] = []
        self.passed = True
        self.count = 0
        monkeypatch.setattr(host, "_on_gpu", lambda _: True)
        monkeypatch.setattr(cuda_copies, "side_stream", lambda _, direction: Stream(self, direction))
        monkeypatch.setattr(cuda_copies, "current_event", lambda _: Event(self, "computed"))
        monkeypatch.setattr(cuda_copies, "_copied", self.copy)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda _: Stream(self, "main"))

    def copy(self, dest: Tensor, source: Tensor, stream: "Stream") -> "Event":
        dest.copy_(source)
        self.count += 1
        self.journal.append(f"{stream.name} copies {self.count}")
        return Event(self, f"copy {self.count}")


class Stream:
    def __init__(self, clock: Clock, name: str) -> None:
        self.clock, self.name = clock, name

    def wait_event(self, event: "Event") -> None:
        self.clock.journal.append(f"{self.name} waits for {event.name}")


class Event:
    def __init__(self, clock: Clock, name: str) -> None:
        self.clock, self.name = clock, name

    def query(self) -> bool:
        return self.clock.passed

    def synchronize(self) -> None:
        self.clock.journal.append(f"host waits for {self.name}")


def test_streams_wait_for_what_they_need_and_the_host_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, memory = Clock(monkeypatch), Memory()
    store = HostStore(HostTier(MIB), PinnedPool(MIB, memory))
    tensor, dest = random_bytes(5000), torch.zeros(5000, dtype=torch.uint8)
    record = store.write(tensor)
    store.wait_written(record)
    store.read(record, dest)
    store.wait_read(record, dest)
    assert dest.equal(tensor)
    store.drop(record)
    assert store.live_bytes == 0
    store.write(tensor)  # into the same buffer
    assert memory.made == 1
    assert clock.journal == [
        "out waits for computed", "out copies 1", "main waits for copy 1",
        "in waits for computed", "in waits for copy 1", "in copies 2", "main waits for copy 2",
        "out waits for computed", "out waits for copy 2", "out copies 3",
    ]  # fmt: skip


def test_dropped_ticket_keeps_what_its_copies_need_until_they_are_done(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    store = HostStore(HostTier(MIB), PinnedPool(MIB, Memory()))
    arrays = [random_bytes(5000).numpy() for _ in range(2)]
    kept = [weakref.ref(array) for array in arrays]
    record = store.write(torch.from_numpy(arrays[0]))
    store.read(record, torch.from_numpy(arrays[1]))
    arrays.clear()
    clock.passed = False
    store.drop(record)
    del record
    assert store.live_bytes == 0
    assert all(array() is not None for array in kept)
    clock.passed = True
    assert store.live_bytes == 0
    assert all(array() is None for array in kept)


def test_pinned_memory_goes_back_with_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, memory = Clock(monkeypatch), Memory()
    store = HostStore(HostTier(MIB), PinnedPool(MIB, memory))
    store.drop(store.write(random_bytes(5000)))
    assert memory.bytes == GRAIN_BYTES
    del store
    assert memory.bytes == 0
    assert clock.journal[-1] == "host waits for copy 1"  # a copy under way may not lose its memory


@cuda
@pytest.mark.cuda
@pytest.mark.parametrize("tier", ["host", "disk"])
def test_tensors_of_a_gpu_come_back(tmp_path: Path, tier: str) -> None:
    engine = Engine((HostTier(64 * MIB), DiskTier(tmp_path, 64 * MIB)))
    for size in (0, 1, 1001, 3_000_001):
        tensor = torch.randn(size, device="cuda")
        expected = tensor.clone()
        ticket = engine.out(tensor, tier)
        engine.out_wait(ticket)
        tensor.fill_(7)
        dest = torch.empty_like(tensor)
        for _ in range(2):
            engine.into(ticket, dest)
            engine.into_wait(ticket, dest)
            assert dest.equal(expected)
            dest.fill_(9)
        del ticket
    assert engine.live_bytes(tier) == 0


@cuda
@pytest.mark.cuda
def test_a_full_host_is_an_error(tmp_path: Path) -> None:
    engine = Engine((HostTier(4 * MIB), DiskTier(tmp_path, 64 * MIB)))
    tensors = [torch.randn(MIB // 2, device="cuda") for _ in range(4)]
    tickets = [engine.out(tensor, tier) for tensor, tier in zip(tensors, ("host", "host", "disk", "disk"), strict=True)]
    assert (engine.live_bytes("host"), engine.live_bytes("disk")) == (4 * MIB, 4 * MIB)
    for tensor, ticket in zip(tensors, tickets, strict=True):
        dest = torch.empty_like(tensor)
        engine.into(ticket, dest)
        engine.into_wait(ticket, dest)
        assert dest.equal(tensor)
    with pytest.raises(TierFullError):
        engine.out(tensors[0], "host")
