"""The store: find, list, verify, forget; tampering is named to the chunk; a build is all or nothing. No torch."""

import os
from pathlib import Path

import pytest

from fedpeft.base import ArtifactStore, BaseArtifact, default_store
from fedpeft.base.artifact import describe_file, open_artifact
from fedpeft.base.manifest import CHUNK_BYTES, FORMAT, Manifest, SourceEntry, digest_of, parse_manifest
from fedpeft.base.store import staging_directory
from fedpeft.errors import IntegrityFailed, ResourceMissing


def put(store: Path, content: bytes) -> BaseArtifact:
    """An artifact whose weights are ``content``."""
    with staging_directory(store) as (staging, commit):
        (staging / "model.safetensors").write_bytes(content)
        (staging / "config.json").write_text("{}")
        canonical = Manifest(
            format=FORMAT,
            source=SourceEntry(origin="directory", digest="0" * 64, files={}),
            quantize="none",
            model_type="bert",
            parameters=0,
            tasks={},
            tensors={},
            files=tuple(describe_file(path) for path in sorted(staging.iterdir())),
        ).canonical()
        (staging / "manifest.json").write_bytes(canonical)
        return open_artifact(commit(digest_of(canonical).replace(":", "-")))


def overwrite(path: Path, offset: int, content: bytes) -> None:
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def test_an_artifact_is_found_by_its_digest_and_listed(tmp_path: Path):
    store = ArtifactStore(tmp_path)
    first, second = put(tmp_path, b"one"), put(tmp_path, b"two")
    assert store.find(first.digest) == first
    assert store.find("sha256:" + "0" * 64) is None
    assert store.ls() == tuple(sorted((first, second), key=lambda artifact: artifact.digest))
    assert store.verify() == store.ls()
    assert first.size_bytes == sum(path.stat().st_size for path in first.path.iterdir())
    with pytest.raises(ResourceMissing, match="fedpeft base build"):
        store.get("sha256:" + "0" * 64)


def test_the_same_content_has_the_same_digest_in_any_store(tmp_path: Path):
    assert (
        put(tmp_path / "a", b"same").digest
        == put(tmp_path / "b", b"same").digest
        != put(tmp_path / "b", b"other").digest
    )


def test_a_tampered_byte_is_named_with_its_file_and_chunk(tmp_path: Path):
    artifact = put(tmp_path, b"x" * (2 * CHUNK_BYTES + 100))
    assert len(artifact.manifest.files[1].chunks) == 3
    overwrite(artifact.path / "model.safetensors", CHUNK_BYTES + 17, b"y")
    with pytest.raises(IntegrityFailed) as failure:
        ArtifactStore(tmp_path).verify(artifact.digest)
    assert failure.value.exit_code == 6
    (problem,) = failure.value.problems
    assert problem.where == f"model.safetensors chunk 1 (bytes {CHUNK_BYTES} to {2 * CHUNK_BYTES})"
    with pytest.raises(IntegrityFailed, match="chunk 1"):
        ArtifactStore(tmp_path).verify()


def test_truncated_and_missing_files_are_named(tmp_path: Path):
    artifact = put(tmp_path, b"x" * 50)
    (artifact.path / "config.json").unlink()
    os.truncate(artifact.path / "model.safetensors", 49)
    assert [(problem.where, problem.found) for problem in artifact.problems()] == [
        ("config.json", "no such file"),
        ("model.safetensors", "49 bytes"),
    ]


def test_a_changed_manifest_is_not_the_artifact_that_its_name_says(tmp_path: Path):
    artifact = put(tmp_path, b"one")
    content = (artifact.path / "manifest.json").read_bytes()
    overwrite(artifact.path / "manifest.json", 0, content.replace(b'"bert"', b'"tree"'))
    with pytest.raises(IntegrityFailed, match=artifact.digest):
        ArtifactStore(tmp_path).find(artifact.digest)
    with pytest.raises(IntegrityFailed, match=r"manifest\.json"):
        ArtifactStore(tmp_path).verify()
    assert ArtifactStore(tmp_path).ls() == ()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"name":"config.json"', b'"name":"../evil.json"'),
        (b'"name":"config.json"', b'"name":"/etc/passwd"'),
        (b'"name":"config.json"', b'"name":".hidden"'),
        (b'"name":"config.json"', b'"name":"model.safetensors"'),
        (b'"name":"config.json"', b'"name":"manifest.json"'),
        (b'"size_bytes":2', b'"size_bytes":99999999'),
        (b'"size_bytes":2', b'"size_bytes":-1'),
        (b'"parameters":0', b'"parameters":0,"surprise":1'),
        (b'"format":"fedpeft-base/1"', b'"format":"fedpeft-base/2"'),
        (b'"parameters":0', b'"parameters": 0'),
    ],
)
def test_a_hostile_manifest_is_refused_even_under_its_own_digest(tmp_path: Path, old: bytes, new: bytes):
    content = (put(tmp_path, b"one").path / "manifest.json").read_bytes()
    assert old in content
    hostile = content.replace(old, new)
    with pytest.raises(IntegrityFailed, match="manifest"):
        parse_manifest(hostile, digest_of(hostile))
    parse_manifest(content, digest_of(content))


def test_gc_removes_broken_and_unkept_artifacts_old_leftovers_and_dangling_memories(tmp_path: Path):
    store = ArtifactStore(tmp_path)
    kept, dropped, broken = put(tmp_path, b"kept"), put(tmp_path, b"dropped"), put(tmp_path, b"broken")
    overwrite(broken.path / "model.safetensors", 0, b"B")
    (tmp_path / ".staging-old").mkdir()
    os.utime(tmp_path / ".staging-old", (0, 0))
    (tmp_path / ".staging-new").mkdir()
    for key, artifact in (("a", kept), ("b", broken)):
        store.remember(key, artifact.digest)
    assert set(store.gc()) == {broken.path.name, ".staging-old"}
    assert store.recall("a") == kept
    assert sorted(path.name for path in (tmp_path / "index").iterdir()) == ["a"]
    assert (tmp_path / ".staging-new").is_dir()
    assert store.gc({kept.digest}) == (dropped.path.name,)
    assert store.ls() == (kept,)


def test_a_memory_of_a_damaged_or_vanished_artifact_is_no_answer(tmp_path: Path):
    store, artifact = ArtifactStore(tmp_path), put(tmp_path, b"one")
    store.remember("key", artifact.digest)
    assert store.recall("key") == artifact
    assert store.recall("other") is None
    os.truncate(artifact.path / "model.safetensors", 1)
    assert store.recall("key") is None
    store.drop_if_broken(artifact.digest)
    assert store.recall("key") is None
    assert not artifact.path.exists()


def test_a_build_that_fails_leaves_nothing(tmp_path: Path):
    def fail_halfway() -> None:
        with staging_directory(tmp_path) as (staging, _commit):
            (staging / "model.safetensors").write_bytes(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_halfway()
    assert list(tmp_path.iterdir()) == []


def test_the_second_of_two_builders_keeps_the_first_ones_folder(tmp_path: Path):
    first = put(tmp_path, b"same")
    inode = (first.path / "model.safetensors").stat().st_ino
    assert put(tmp_path, b"same") == first
    assert (first.path / "model.safetensors").stat().st_ino == inode
    assert [path.name for path in tmp_path.iterdir()] == [first.path.name]


def test_files_of_an_artifact_are_read_only(tmp_path: Path):
    assert {path.stat().st_mode & 0o222 for path in put(tmp_path, b"one").path.iterdir()} == {0}


def test_a_store_that_cannot_be_written_is_a_missing_resource(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ResourceMissing, match="FEDPEFT_HOME"), staging_directory(tmp_path / "file" / "store"):
        pass


def test_the_default_store_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FEDPEFT_HOME", str(tmp_path))
    assert default_store() == tmp_path / "bases"
    monkeypatch.delenv("FEDPEFT_HOME")
    assert default_store() == Path.home() / ".cache" / "fedpeft" / "bases"
