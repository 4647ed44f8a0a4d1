"""Caches: whatever is wrong with a file it is made again, nothing is executed that was not written so, nobody else can write."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from memcompile.codegen.cpp import build
from memcompile.commands.doctor import check_cache
from memcompile.errors import UnsafeCacheError
from memcompile.machine import cache
from memcompile.solvers.compiled import compiled

ROOT = Path(__file__).resolve().parents[2]
SEAL_BYTES = len("\n# sha256 ") + 64 + len("\n")
pytestmark = pytest.mark.usefixtures("own_cache")


@dataclass(frozen=True)
class Sample:
    name: str
    rate: float


KEY = {"device": "cpu"}
VALUE = Sample("here", 2.5)


def value(measured: list[str] | None = None, **options: Any) -> Sample:
    def measure() -> Sample:
        (measured if measured is not None else []).append("measured")
        return VALUE

    return cache.get("sample", KEY, Sample, measure, **options)


def flipped(data: bytes) -> bytes:
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "a byte": lambda _: b"x",
    "cut short": lambda data: data[: len(data) // 2],
    "the seal cut off": lambda data: data[:-SEAL_BYTES],
    "a byte missing at the end": lambda data: data[:-1],
    "one bit": flipped,
    "more behind it": lambda data: data + b"x",
    "zeros of the same length": lambda data: bytes(len(data)),
    "noise": lambda data: bytes(range(256)) * (len(data) // 256 + 1),
}
damages = pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)


# --- values ----------------------------------------------------------------------------------------------------------


def test_measured_once_and_read_by_the_next_process() -> None:
    measured: list[str] = []
    assert value(measured) == value(measured) == VALUE
    cache.forget()
    assert cache.known("sample", KEY, Sample) == value(measured) == VALUE
    assert measured == ["measured"]
    value(measured, refresh=True)
    assert len(measured) == 2
    assert cache.known("sample", {"device": "other"}, Sample) is None


@damages
def test_a_damaged_value_is_measured_again(damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture) -> None:
    value()
    path = cache.path_of("sample", KEY)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    cache.forget()
    measured: list[str] = []
    assert value(measured) == VALUE
    assert measured == ["measured"]
    assert "damaged" in caplog.text
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"null", b"[1]", b"{}", b"\xff", b'{"value": 3}'),
        *(b'{"value": {"name": 1, "rate": 2.5}}', b'{"value": {"name": "here"}}'),
        *(b'{"value": {"name": "here", "rate": -1.0}}', b'{"value": {"name": "here", "rate": NaN}}'),
    ],
)
def test_a_value_of_another_form_is_measured_again(content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """Whole files, but of another version, or with numbers that make no sense."""
    cache.write(cache.path_of("sample", KEY), content)
    measured: list[str] = []
    assert value(measured, valid=lambda sample: sample.rate > 0) == VALUE
    assert measured == ["measured"]
    assert "of no use" in caplog.text


def test_a_file_under_another_name_is_not_used(caplog: pytest.LogCaptureFixture) -> None:
    value()
    other = cache.path_of("sample", {"device": "other"})
    cache.path_of("sample", KEY).rename(other)
    assert cache.read(other) is None
    assert "damaged" in caplog.text


# --- code ------------------------------------------------------------------------------------------------------------


def library(number: int) -> str:
    return f'extern "C" int run() {{ return {number}; }}'


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """Two libraries, that return 7 and 8."""
    folder = tmp_path_factory.mktemp("libraries")
    for number in (7, 8):
        (folder / "run.cpp").write_text(library(number))
        subprocess.run(["g++", "-shared", "-fPIC", folder / "run.cpp", "-o", folder / f"{number}.so"], check=True)
    return (folder / "7.so").read_bytes(), (folder / "8.so").read_bytes()


OTHERS = {"as it came": lambda data: data[:-SEAL_BYTES], "not a library": lambda _: None}


@pytest.mark.parametrize("damage", [*DAMAGES.values(), *OTHERS.values()], ids=[*DAMAGES, *OTHERS])
def test_a_damaged_library_is_compiled_again_and_not_executed(
    damage: Callable[[bytes], bytes | None], libraries: tuple[bytes, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    right, wrong = libraries
    monkeypatch.setattr(build, "_compile", lambda _: right)
    path = build.library_path(library(7))
    cache.write(path, wrong)
    data = damage(path.read_bytes())
    if data is None:
        cache.write(path, b"of another system")  # a whole file
    else:
        path.write_bytes(data)
    assert build.load(library(7)).run() == 7
    assert cache.read(path) == right


def test_a_whole_library_is_not_compiled(libraries: tuple[bytes, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_compile", None)
    cache.write(build.library_path(library(7)), libraries[0])
    assert build.load(library(7)).run() == 7


def test_a_library_under_the_name_of_another_is_not_executed(
    libraries: tuple[bytes, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    right, wrong = libraries
    monkeypatch.setattr(build, "_compile", lambda _: right)
    other = build.library_path(library(8))
    cache.write(other, wrong)
    other.rename(build.library_path(library(7)))
    assert build.load(library(7)).run() == 7


def test_a_library_runs_where_nothing_can_be_written(
    libraries: tuple[bytes, bytes], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(build, "_compile", lambda _: libraries[0])
    monkeypatch.setattr(tempfile, "NamedTemporaryFile", refuse)
    assert build.load(library(7)).run() == 7
    assert "cannot write the cache" in caplog.text


def plus_one(count: int) -> int:
    return count + 1


class Trap:
    """Something that a pickle does when it is read."""

    def __reduce__(self) -> Any:
        return pytest.fail, ("unpickled",)


@pytest.mark.parametrize(
    "damage", [*DAMAGES.values(), lambda _: pickle.dumps(Trap())], ids=[*DAMAGES, "a pickle of somebody else"]
)
def test_a_damaged_function_of_numba_is_compiled_again(
    damage: Callable[[bytes], bytes], function_file: tuple[Path, bytes]
) -> None:
    path, data = function_file
    path = cache.directory() / path.name
    cache.write(path, b"")
    path.write_bytes(damage(data))
    again: Any = compiled(plus_one)
    assert again(1) == 2
    assert sum(again.stats.cache_misses.values()) == 1
    assert path.read_bytes()[-SEAL_BYTES:] != b""
    known: Any = compiled(plus_one)
    assert known(1) == 2
    assert sum(known.stats.cache_hits.values()) == 1


@pytest.fixture(scope="module")
def function_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """The file of ``plus_one`` as numba's results are kept."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEMCOMPILE_CACHE_DIR", str(tmp_path_factory.mktemp("numba")))
        compiled(plus_one)(1)
        (path,) = cache.directory().glob("numba-*")
        return path, path.read_bytes()


# --- writing ---------------------------------------------------------------------------------------------------------


def refuse(*_args: object, **_options: object) -> Any:
    raise OSError(errno.EROFS, "Read-only file system")


def test_a_directory_that_cannot_be_written_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MEMCOMPILE_CACHE_DIR", str(tmp_path / "file" / "below"))
    measured: list[str] = []
    assert value(measured) == value(measured) == VALUE
    assert measured == ["measured"]  # a process uses the same numbers throughout
    assert "cannot write the cache" in caplog.text


def test_a_read_only_directory_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    value()
    cache.directory().chmod(0o500)
    monkeypatch.setattr(tempfile, "NamedTemporaryFile", refuse)  # root may write all the same
    cache.forget()
    measured: list[str] = []
    assert value(measured) == VALUE
    assert not measured
    assert not cache.write(cache.path_of("sample", {"device": "other"}), b"")
    cache.directory().chmod(0o700)


def test_a_file_that_cannot_be_read_is_measured_again(caplog: pytest.LogCaptureFixture) -> None:
    cache.path_of("sample", KEY).mkdir(parents=True)
    assert value() == VALUE
    assert "cannot be read" in caplog.text


def test_a_full_disk_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    value()
    monkeypatch.setattr(Path, "replace", refuse)
    value(refresh=True)
    assert "cannot write the cache" in caplog.text
    assert [path.name for path in cache.directory().iterdir()] == [cache.path_of("sample", KEY).name]


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_only_this_user_reads_and_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, umask: int) -> None:
    monkeypatch.setenv("MEMCOMPILE_CACHE_DIR", str(tmp_path / "new" / "cache"))
    before = os.umask(umask)
    try:
        value()
    finally:
        os.umask(before)
    modes = [path.stat().st_mode & 0o777 for path in (tmp_path / "new", cache.directory(), cache.path_of("sample", KEY))]
    assert modes == [0o700, 0o700, 0o600]


WRITER = """
import sys
from memcompile.machine import cache
own = bytes([int(sys.argv[1])]) * 200_000
for turn in range(40):
    assert cache.write(cache.path_of("sample", {}), own)
    found = cache.read(cache.path_of("sample", {}))
    assert found is not None and len(set(found)) == 1 and len(found) == len(own), turn
assert "torch" not in sys.modules
"""


def test_processes_and_threads_that_write_the_same_see_whole_files(caplog: pytest.LogCaptureFixture) -> None:
    """Each process reads what any of them wrote last, and so does each thread."""
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(number)], cwd=ROOT, stderr=subprocess.PIPE) for number in range(2)
    ]
    wrong: list[object] = []

    def write(number: int) -> None:
        own = bytes([number]) * 200_000
        for _ in range(40):
            cache.write(cache.path_of("sample", {}), own)
            found = cache.read(cache.path_of("sample", {}))
            if found is None or len(found) != len(own) or len(set(found)) != 1:
                wrong.append(found)

    threads = [threading.Thread(target=write, args=(10 + number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(writer.communicate()[1], writer.returncode) for writer in writers] == [(b"", 0)] * 2
    assert not wrong
    assert not caplog.text
    assert [path.name for path in cache.directory().iterdir()] == [cache.path_of("sample", {}).name]


# --- whose directory it is -------------------------------------------------------------------------------------------


def foreign(monkeypatch: pytest.MonkeyPatch, owner: int) -> None:
    """Let the directory of caches belong to another user."""
    real = Path.stat

    def stat(path: Path, **options: Any) -> os.stat_result:
        found = real(path, **options)
        return os.stat_result((*found[:4], owner, *found[5:])) if path == cache.directory() else found

    monkeypatch.setattr(Path, "stat", stat)


USES: dict[str, Callable[[], object]] = {
    "value": value,
    "library": lambda: build.load(library(7)),
    "numba": lambda: compiled(plus_one)(1),
    "write": lambda: cache.write(cache.path_of("sample", KEY), b""),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize("mode", [None, 0o770, 0o702], ids=["another's", "a group's", "anybody's"])
def test_a_directory_that_others_can_write_to_is_refused(
    use: Callable[[], object], mode: int | None, libraries: tuple[bytes, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.write(build.library_path(library(7)), libraries[0])
    if mode is None:
        foreign(monkeypatch, os.geteuid() + 1)
    else:
        cache.directory().chmod(mode)
    with pytest.raises(UnsafeCacheError, match="MEMCOMPILE_CACHE_DIR") as refused:
        use()
    assert str(cache.directory()) in str(refused.value)
    check = check_cache()
    assert check.status == "fail"
    assert check.message == str(refused.value)


def test_a_directory_of_root_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an image of a container that brings its caches."""
    value()
    cache.forget()
    foreign(monkeypatch, 0)
    measured: list[str] = []
    assert value(measured) == VALUE
    assert not measured


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEMCOMPILE_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache.directory() == Path("/xdg/memcompile")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cache.directory() == Path("/home/somebody/.cache/memcompile")


def test_tests_leave_the_users_caches_alone(request: pytest.FixtureRequest) -> None:
    """``own_cache`` is for this file; all others share one beside the tests."""
    shared = subprocess.run(
        [sys.executable, "-c", "import tests.conftest, os; print(os.environ['MEMCOMPILE_CACHE_DIR'])"],
        cwd=ROOT, env={**os.environ, "MEMCOMPILE_CACHE_DIR": "/users/own"}, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert Path(shared.strip()).is_relative_to(request.config.rootpath)
