"""The vectors are what the code does, and what an independent reader of the protocol computes."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def test_the_code_still_produces_the_vectors_byte_for_byte() -> None:
    location = importlib.util.spec_from_file_location("vector_generator", HERE / "generate.py")
    generator = importlib.util.module_from_spec(location)
    location.loader.exec_module(generator)
    assert generator.generate() == generator.TARGET.read_text()


def verify(*files: Path) -> subprocess.CompletedProcess[str]:
    """In a Python with neither site-packages nor this repository on its path."""
    command = [sys.executable, "-I", "-S", str(HERE / "verify.py"), *map(str, files)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_an_independent_verifier_in_the_standard_library_agrees() -> None:
    result = verify()
    assert result.returncode == 0, result.stdout + result.stderr
    assert "all vectors verified" in result.stdout


def test_the_verifier_notices_one_changed_nibble_of_any_reply(tmp_path: Path) -> None:
    document = json.loads((HERE / "round.json").read_text())
    for exchange in document["exchanges"]:
        if exchange["device"] == 2 and exchange["reply"]["type"] in (
            "EncryptedShares",
            "MaskedInput",
            "RevealedShares",
        ):
            changed = json.loads(json.dumps(document))
            target = changed["exchanges"][document["exchanges"].index(exchange)]["reply"]
            target["tag"] = ("0" if target["tag"][0] != "0" else "1") + target["tag"][1:]
            file = tmp_path / "round.json"
            file.write_text(json.dumps(changed))
            assert "FAILED" in verify(file).stderr
