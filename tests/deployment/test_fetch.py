"""Fetching a base over loopback: whole, interrupted, wrong, hostile."""

import errno
import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedpeft.base import ArtifactStore
from fedpeft.base.artifact import describe_file
from fedpeft.base.manifest import CHUNK_BYTES, FileEntry, Manifest, SourceEntry, digest_of
from fedpeft.deployment.rpc import PIECE_BYTES
from fedpeft.errors import IntegrityFailed, NotEnrolled, ResourceMissing
from fedpeft_client.connection.base_cache import BaseCache
from fedpeft_client.connection.fetch_base import FetchProgress, fetch_base
from fedpeft_client.connection.grpc_client import Link, Unreachable
from fedpeft_client.home import DeviceHome

Coordinator = Any  # see conftest.py
SIZE = 2 * CHUNK_BYTES + 12345


def put_base(store: Path, files: dict[str, bytes], entries: tuple[FileEntry, ...] | None = None) -> str:
    """An artifact of these files; its weights are noise, since nobody loads them here."""
    staging = store / "new"
    staging.mkdir(parents=True)
    for name, content in files.items():
        (staging / name).write_bytes(content)
    manifest = Manifest(
        format="fedpeft-base/1",
        source=SourceEntry(origin="test", digest="0" * 64, files={}),
        quantize="none",
        model_type="bert",
        parameters=1,
        tasks={},
        tensors={},
        files=entries or tuple(describe_file(staging / name) for name in sorted(files)),
    )
    (staging / "manifest.json").write_bytes(manifest.canonical())
    digest = digest_of(manifest.canonical())
    staging.rename(store / digest.replace(":", "-"))
    return digest


@pytest.fixture(scope="module")
def content() -> bytes:
    return hashlib.shake_256(b"weights").digest(SIZE)


@pytest.fixture(scope="module")
def base(coordinator: Coordinator, content: bytes) -> str:
    return put_base(coordinator.home.bases, {"model.safetensors": content, "config.json": b"{}"})


@pytest.fixture(scope="module")
def link(coordinator: Coordinator, tmp_path_factory: pytest.TempPathFactory, enrol: Callable) -> Iterator[Link]:
    home, _ = enrol(coordinator.token(), "fetcher", home=DeviceHome(tmp_path_factory.mktemp("device")))
    with Link.of_home(home) as opened:
        yield opened


def no_pause(_seconds: float) -> None:
    """Tests do not wait."""


class Faulty:
    """A link whose streams break: the first at the byte given, or with bytes changed; later ones go through."""

    def __init__(self, link: Link, *, cut_at: int | None = None, corrupt: dict[int, int] | None = None) -> None:
        self.link, self.cut_at, self.corrupt, self.asked = link, cut_at, dict(corrupt or {}), []

    def manifest(self, digest: str) -> bytes:
        return self.link.manifest(digest)

    def chunks(self, digest: str, file: str, offset: int) -> Iterator[bytes]:
        self.asked.append((file, offset))
        at = offset
        for piece in self.link.chunks(digest, file, offset):
            sent = bytearray(piece)
            if file == "model.safetensors":
                for place, times in list(self.corrupt.items()):
                    if at <= place < at + len(sent) and times:
                        sent[place - at] ^= 1
                        self.corrupt[place] -= 1
                if self.cut_at is not None and at + len(sent) > self.cut_at:
                    keep, self.cut_at = self.cut_at - at, None
                    yield bytes(sent[:keep])
                    raise Unreachable("cut")
            yield bytes(sent)
            at += len(sent)


def test_a_base_arrives_whole_and_a_second_fetch_takes_no_byte(base: str, link: Link, content: bytes, tmp_path: Path):
    seen: list[FetchProgress] = []
    artifact = fetch_base(link, base, tmp_path, progress=seen.append, pause=no_pause)
    artifact.verify()
    assert (artifact.path / "model.safetensors").read_bytes() == content
    assert seen[-1] == FetchProgress(done_bytes=SIZE + 2, total_bytes=SIZE + 2, received_bytes=SIZE + 2)
    again: list[FetchProgress] = []
    silent = Link("127.0.0.1:1", authority=b"")  # nobody is asked
    assert fetch_base(silent, base, tmp_path, progress=again.append, pause=no_pause).digest == base
    assert again == []


def test_a_cut_connection_goes_on_where_it_broke(base: str, link: Link, tmp_path: Path):
    seen: list[FetchProgress] = []
    cut = CHUNK_BYTES + 5_000_000
    faulty = Faulty(link, cut_at=cut)
    fetch_base(faulty, base, tmp_path, progress=seen.append, pause=no_pause).verify()
    assert ("model.safetensors", cut) in faulty.asked
    assert seen[-1].received_bytes == SIZE + 2  # nothing is sent twice while the process lives


def test_a_killed_process_goes_on_with_what_it_had_checked(base: str, link: Link, tmp_path: Path):
    class Killed(BaseException):
        pass

    def kill(progress: FetchProgress) -> None:
        if progress.done_bytes > CHUNK_BYTES + 3_000_000:
            raise Killed

    with pytest.raises(Killed):
        fetch_base(link, base, tmp_path, progress=kill, pause=no_pause)
    (staging,) = tmp_path.glob(".staging-fetch-*")
    with (staging / "model.safetensors").open("r+b") as file:
        file.seek(CHUNK_BYTES + 7)
        file.write(b"torn by the power cut")
    seen: list[FetchProgress] = []
    fetch_base(link, base, tmp_path, progress=seen.append, pause=no_pause).verify()
    assert seen[-1].received_bytes <= SIZE + 2 - CHUNK_BYTES + CHUNK_BYTES  # the torn chunk again, and no other


def test_a_disk_that_takes_a_part_of_a_piece_gets_the_rest_of_it(
    base: str, link: Link, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A quota or a full disk takes what fits and refuses the next write; what was counted must lie in the file."""
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: write(fd, bytes(data)[: max(1, len(data) // 2)], offset))
    fetch_base(link, base, tmp_path, progress=lambda _: None, pause=no_pause).verify()


def test_a_wrong_chunk_alone_is_fetched_again(base: str, link: Link, tmp_path: Path):
    seen: list[FetchProgress] = []
    faulty = Faulty(link, corrupt={CHUNK_BYTES + 5: 1})
    fetch_base(faulty, base, tmp_path, progress=seen.append, pause=no_pause).verify()
    in_flight = 4 * PIECE_BYTES  # received before the chunk was found to be wrong
    assert SIZE + 2 < seen[-1].received_bytes <= SIZE + 2 + CHUNK_BYTES + in_flight
    assert ("model.safetensors", CHUNK_BYTES) in faulty.asked


def test_a_chunk_that_stays_wrong_ends_the_fetch_and_nothing_gets_the_name(base: str, link: Link, tmp_path: Path):
    with pytest.raises(IntegrityFailed, match=r"chunk 1 of model\.safetensors"):
        fetch_base(Faulty(link, corrupt={CHUNK_BYTES + 5: 9}), base, tmp_path, pause=no_pause)
    assert list(tmp_path.glob("sha256-*")) == []


def test_a_connection_that_never_gives_a_byte_is_given_up(base: str, link: Link, tmp_path: Path):
    class Dead(Faulty):
        def chunks(self, digest: str, file: str, offset: int) -> Iterator[bytes]:
            raise Unreachable("dead")

    waits: list[float] = []
    with pytest.raises(Unreachable):
        fetch_base(Dead(link), base, tmp_path, pause=waits.append)
    assert waits == sorted(waits)
    assert len(waits) == 5


def test_a_file_longer_than_promised_is_refused(base: str, link: Link, tmp_path: Path):
    class Endless(Faulty):
        def chunks(self, digest: str, file: str, offset: int) -> Iterator[bytes]:
            while True:
                yield bytes(1 << 16)

    with pytest.raises(IntegrityFailed):
        fetch_base(Endless(link), base, tmp_path, pause=no_pause)
    written = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert written <= SIZE


@pytest.mark.parametrize("name", ["../escape", "/etc/x", "a/b", ".hidden", "manifest.json", "x\n"])
def test_a_manifest_with_a_name_that_leads_elsewhere_is_refused(name: str, link: Link, tmp_path: Path, base: str):
    entry = FileEntry.model_construct(name=name, size_bytes=0, sha256="0" * 64, chunks=())
    honest = Manifest.model_validate_json(link.manifest(base))
    forged = honest.model_copy(update={"files": (entry,)}).canonical()

    class Liar(Faulty):
        def manifest(self, digest: str) -> bytes:
            return forged

    with pytest.raises(IntegrityFailed):
        fetch_base(Liar(link), digest_of(forged), tmp_path / "cache", pause=no_pause)
    assert [path for path in tmp_path.rglob("*") if path.is_file() and "lock" not in path.name] == []


def test_another_manifest_than_the_digest_names_is_refused(base: str, link: Link, tmp_path: Path):
    class Liar(Faulty):
        def manifest(self, digest: str) -> bytes:
            return self.link.manifest(base).replace(b'"test"', b'"evil"')

    with pytest.raises(IntegrityFailed, match="Expected the manifest"):
        fetch_base(Liar(link), base, tmp_path, pause=no_pause)


def test_a_link_that_is_put_in_place_while_a_base_arrives_is_neither_written_to_nor_named(
    base: str, link: Link, tmp_path: Path
):
    elsewhere, cache = tmp_path / "elsewhere", tmp_path / "cache"
    elsewhere.mkdir()

    def swap(progress: FetchProgress) -> None:
        (staging,) = cache.glob(".staging-fetch-*")
        if not staging.is_symlink() and progress.done_bytes > CHUNK_BYTES:
            staging.rename(tmp_path / "moved")
            staging.symlink_to(elsewhere, target_is_directory=True)

    with pytest.raises(IntegrityFailed, match="another in its place"):
        fetch_base(link, base, cache, progress=swap, pause=no_pause)
    assert list(elsewhere.iterdir()) == []
    assert [path.name for path in cache.iterdir() if path.name.startswith("sha256")] == []


def test_a_staging_directory_of_another_user_is_not_used(
    base: str, link: Link, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / f".staging-fetch-{base.removeprefix('sha256:')}").mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(IntegrityFailed, match="this user's own"):
        fetch_base(link, base, tmp_path, pause=no_pause)


def test_a_disk_that_fills_while_a_base_arrives_is_named_and_the_next_fetch_goes_on(
    base: str, link: Link, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    real = os.pwrite

    def full(descriptor: int, piece: bytes, offset: int) -> int:
        if offset > CHUNK_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, piece, offset)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(ResourceMissing, match="No space left"):
        fetch_base(link, base, tmp_path, pause=no_pause)
    monkeypatch.setattr(os, "pwrite", real)
    seen: list[FetchProgress] = []
    fetch_base(link, base, tmp_path, progress=seen.append, pause=no_pause).verify()
    assert seen[-1].received_bytes <= SIZE + 2 - CHUNK_BYTES


@pytest.mark.parametrize("digest", ["", "sha256:xyz", "sha256:../../../../etc/passwd", "sha256:" + "0" * 63 + "/"])
def test_a_digest_that_is_none_is_refused(digest: str, link: Link, tmp_path: Path):
    with pytest.raises(IntegrityFailed):
        fetch_base(link, digest, tmp_path, pause=no_pause)


def test_links_in_the_staging_directory_are_not_followed(base: str, link: Link, tmp_path: Path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    staging = tmp_path / "cache" / f".staging-fetch-{base.removeprefix('sha256:')}"
    staging.mkdir(parents=True)
    (staging / "config.json").symlink_to(victim)
    with pytest.raises(IntegrityFailed, match="link"):
        fetch_base(link, base, tmp_path / "cache", pause=no_pause)
    assert victim.read_text() == "precious"
    (staging / "config.json").unlink()
    (staging / "config.json").hardlink_to(victim)  # no link to follow: the file itself, by another name
    with pytest.raises(IntegrityFailed, match="link"):
        fetch_base(link, base, tmp_path / "cache", pause=no_pause)
    assert victim.read_text() == "precious"
    shutil.rmtree(staging)
    staging.symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(IntegrityFailed, match="something else"):
        fetch_base(link, base, tmp_path / "cache", pause=no_pause)


def test_disk_and_quota_are_checked_before_the_download(
    base: str, link: Link, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    faulty = Faulty(link)
    with pytest.raises(ResourceMissing, match="quota"):
        fetch_base(faulty, base, tmp_path, quota_bytes=SIZE - 1, pause=no_pause)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=SIZE))
    with pytest.raises(ResourceMissing, match="MiB free"):
        fetch_base(faulty, base, tmp_path, pause=no_pause)
    assert faulty.asked == []


def aged(cache: Path, digest: str, seconds_ago: float) -> None:
    """As if that base had come so long ago."""
    folder = cache / digest.replace(":", "-")
    at = folder.stat().st_mtime - seconds_ago
    os.utime(folder, (at, at))


def test_the_quota_lets_the_least_recently_used_bases_go_and_never_one_in_use(
    coordinator: Coordinator, content: bytes, base: str, link: Link, tmp_path: Path
):
    second, third = (
        put_base(coordinator.home.bases, {"model.safetensors": content[::-1], "n": n}) for n in (b"2", b"3")
    )
    other, mine = BaseCache(tmp_path), BaseCache(tmp_path)
    quota = 2 * SIZE + 10_000  # two of them and their manifests
    fetch_base(link, base, tmp_path, quota_bytes=quota, pause=no_pause)
    fetch_base(link, second, tmp_path, quota_bytes=quota, pause=no_pause)
    aged(tmp_path, base, 100.0)
    aged(tmp_path, second, 200.0)
    other.hold(second)  # the oldest, but another device works with it
    mine.hold(third)
    fetch_base(link, third, tmp_path, quota_bytes=quota, pause=no_pause)
    assert {found.digest for found in ArtifactStore(tmp_path).ls()} == {second, third}
    mine.hold(base)
    mine.release()
    mine.hold(third)
    faulty = Faulty(link)
    with pytest.raises(ResourceMissing, match=r"in use by devices .* limits\.bases_mb"):
        fetch_base(faulty, base, tmp_path, quota_bytes=quota, pause=no_pause)
    assert faulty.asked == []
    other.release()
    fetch_base(link, base, tmp_path, quota_bytes=quota, pause=no_pause)
    assert {found.digest for found in ArtifactStore(tmp_path).ls()} == {base, third}
    assert ArtifactStore(tmp_path).gc() == ()


def test_what_was_used_last_stays_longest(coordinator: Coordinator, base: str, link: Link, tmp_path: Path):
    second, third = (put_base(coordinator.home.bases, {"model.safetensors": bytes(SIZE), "n": n}) for n in (b"4", b"5"))
    for digest in (base, second):
        fetch_base(link, digest, tmp_path, pause=no_pause)
    aged(tmp_path, second, 50.0)
    aged(tmp_path, base, 100.0)
    user = BaseCache(tmp_path)
    user.hold(base)
    user.release()
    fetch_base(link, third, tmp_path, quota_bytes=2 * SIZE + 10_000, pause=no_pause)
    assert {found.digest for found in ArtifactStore(tmp_path).ls()} == {base, third}


def test_without_a_quota_nothing_is_ever_removed(
    base: str, link: Link, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    put_base(tmp_path, {"model.safetensors": b"older"})
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=SIZE))
    with pytest.raises(ResourceMissing, match=r"limits\.bases_mb"):
        fetch_base(link, base, tmp_path, pause=no_pause)
    assert len(ArtifactStore(tmp_path).ls()) == 1


def test_two_devices_with_one_cache_download_once(base: str, link: Link, tmp_path: Path):
    received, results = [], []

    def fetch() -> None:
        seen: list[FetchProgress] = []
        pause = threading.Event().wait
        results.append(fetch_base(link, base, tmp_path, progress=seen.append, pause=lambda s: pause(0.01)))
        received.append(max((progress.received_bytes for progress in seen), default=0))

    threads = [threading.Thread(target=fetch) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(received) == [0, SIZE + 2]
    assert len(results) == 2


def test_the_shelf_gives_files_of_the_manifest_and_nothing_else(
    coordinator: Coordinator, base: str, link: Link, tmp_path: Path
):
    for file in ("manifest.json", "../../coordinator.json", "../../pki/ca.key", "nothing"):
        with pytest.raises(ResourceMissing):
            next(link.chunks(base, file, 0))
    with pytest.raises(ResourceMissing):
        next(link.chunks(base, "config.json", 3))
    with pytest.raises(ResourceMissing):
        link.manifest("sha256:" + "0" * 64)
    linked = put_base(coordinator.home.bases, {"config.json": b"{ }"})
    path = coordinator.home.bases / linked.replace(":", "-") / "config.json"
    os.unlink(path)
    path.symlink_to(coordinator.home.ca_key)
    with pytest.raises(ResourceMissing):
        next(link.chunks(linked, "config.json", 0))


def test_a_device_that_is_revoked_while_it_downloads_gets_no_further(
    coordinator: Coordinator, base: str, enrol: Callable, tmp_path: Path
):
    home, _ = enrol(coordinator.token(), "short-lived", home=DeviceHome(tmp_path / "home"))
    with Link.of_home(home) as own:
        stream = own.chunks(base, "model.safetensors", 0)
        next(stream)
        coordinator.admission.revoke("short-lived", "test")
        with pytest.raises(NotEnrolled, match="revoked"):
            list(stream)


def test_wake_ups_reach_the_device_and_end_with_its_enrolment(
    coordinator: Coordinator, enrol: Callable, tmp_path: Path
):
    from fedpeft_client.connection.wakeups import WakeListener

    home, _ = enrol(coordinator.token(), "sleeper", home=DeviceHome(tmp_path / "home"))
    woken, ended, why = threading.Event(), threading.Event(), []

    def end(error: NotEnrolled) -> None:
        why.append(str(error))
        ended.set()

    listener = WakeListener(home, on_wake=woken.set, on_ended=end)
    listener.start()
    assert woken.wait(10)
    woken.clear()
    assert listener.is_open
    assert "sleeper" in coordinator.board.listening()
    coordinator.board.notify(["sleeper"])
    assert woken.wait(5)
    coordinator.admission.revoke("sleeper", "overslept")
    assert ended.wait(5)
    assert "overslept" in why[0]
    assert not listener.is_open
    listener.stop()


def test_a_listener_that_is_stopped_hangs_up(coordinator: Coordinator, enrol: Callable, tmp_path: Path):
    from fedpeft_client.connection.wakeups import WakeListener

    home, _ = enrol(coordinator.token(), "quiet", home=DeviceHome(tmp_path / "home"))
    woken = threading.Event()
    listener = WakeListener(home, on_wake=woken.set, on_ended=lambda error: None)
    listener.start()
    assert woken.wait(10)
    listener.stop()
    for _ in range(100):
        if "quiet" not in coordinator.board.listening():
            break
        threading.Event().wait(0.05)
    assert "quiet" not in coordinator.board.listening()
