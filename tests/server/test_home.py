"""The coordinator's home."""

from pathlib import Path

import pytest

from fedpeft.errors import ConfigInvalid
from fedpeft_server.home import CoordinatorHome, Settings, default_coordinator_home


def test_settings_come_back_as_they_were_written(tmp_path: Path):
    home = CoordinatorHome(tmp_path)
    settings = Settings(hosts=("fed.example", "10.0.0.1"), fleet_port=1234)
    assert not home.exists
    home.write_settings(settings)
    assert home.exists
    assert home.settings() == settings


def test_no_home_is_said_with_what_to_do(tmp_path: Path):
    with pytest.raises(ConfigInvalid, match="coordinator init"):
        CoordinatorHome(tmp_path / "none").settings()


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"hosts": ["a"]}', Settings(hosts=("a",)).to_json().replace("8443", '"8443"'),
     Settings(hosts=("a",)).to_json().replace("8443", "8444"), Settings(hosts=("a",)).to_json().replace('"a"', "1")],
)  # fmt: skip
def test_damaged_settings_are_refused(text: str):
    with pytest.raises(ConfigInvalid):
        Settings.from_json(text)


def test_fedpeft_home_names_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FEDPEFT_HOME", str(tmp_path))
    assert default_coordinator_home() == tmp_path
