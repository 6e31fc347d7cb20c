"""A base of toys and one finished run from Python, made once."""

from pathlib import Path

import pytest

import fedpeft

Rows = list[dict[str, object]]


def birds(count: int = 60) -> Rows:
    return [{"text": f"the {'red' if i % 2 else 'blue'} bird {i}", "label": "ab"[i % 2]} for i in range(count)]


@pytest.fixture(scope="session")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the base ``my-model`` and, below ``store``, its artifact once it is built."""
    from fedpeft.testing.models import save_tiny, tiny_bert

    folder = tmp_path_factory.mktemp("toys")
    save_tiny(tiny_bert(layers=1, classes=2), folder / "my-model")
    return folder


def small(toys: Path, **rounds: object) -> dict[str, object]:
    """Three clients, one step a round."""
    return {
        "base": {"model": toys / "my-model"},
        "task": {"kind": "classify", "max_length": 16},
        "data": {"partition": {"by": "iid", "clients": 3}},
        "train": {"local_steps": 1, "batch_size": 8},
        "rounds": {"count": 2, **rounds},
    }


@pytest.fixture(scope="session")
def finished(toys: Path) -> fedpeft.Result:
    """A run over rows in memory."""
    return fedpeft.simulate(small(toys), birds(), out=toys / "runs", store=toys / "store")
