"""The names that fedpeft takes from Flower: found in the tree, there in the installed release, and missed when gone."""

import pytest

from tests.flower import imported_names


def test_every_name_that_is_taken_from_flower_is_there() -> None:
    assert len(imported_names.imported()) > 50
    assert imported_names.missing() == []


def test_a_name_that_a_release_has_dropped_is_told_with_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    import flwr.common.constant

    monkeypatch.delattr(flwr.common.constant, "SUPERLINK_NODE_ID")
    (gone,) = imported_names.missing()
    assert gone.startswith("flwr.common.constant SUPERLINK_NODE_ID: ")
    assert "fedpeft/flower/" in gone
