"""Who takes part: clients, what each can afford, and which examples are kept back."""

import json
from pathlib import Path

import pytest

from fedpeft.config import RunConfig, parse
from fedpeft.errors import ConfigInvalid, DataInvalid

pytestmark = pytest.mark.torch

SOURCE = """
[run]
name = "small"
[base]
model = "pypi:some-model"
[task]
kind = "classify"
[data]
source = "{source}"
partition = {{by = "column", column = "site", min_examples = {least}}}
[adapter]
lora = {{rank = 4, tiers = [2, 4]}}
bitfit = {{}}
{devices}
"""
EVERYBODY = '[[device]]\nclients = ["*"]\nmethods = ["bitfit"]\n'


def config_of(
    folder: Path, sites: dict[str, int], devices: str = EVERYBODY, *, least: int = 1, same: bool = False
) -> RunConfig:
    rows = [
        {"text": "the same" if same else f"note {number} of {site}", "label": "yn"[number % 2], "site": site}
        for site, count in sites.items()
        for number in range(count)
    ]
    (folder / "notes.jsonl").write_text("\n".join(map(json.dumps, rows)))
    text = SOURCE.format(source=folder / "notes.jsonl", devices=devices, least=least)
    return parse(text, source="run.toml", simulation=True)


def test_clients_are_in_order_of_their_names_and_no_example_is_on_both_sides(tmp_path: Path) -> None:
    from fedpeft_sim.population import populate

    config = config_of(tmp_path, {"c": 20, "a": 30, "b": 40})
    population = populate(config)
    assert [client.name for client in population.clients] == ["a", "b", "c"]
    assert population.config.task.labels == ("n", "y")
    for client in population.clients:
        train, held_out = ({str(row["text"]) for row in part.rows} for part in (client.train, client.held_out))
        assert train
        assert held_out
        assert not train & held_out
        assert all(text.endswith(client.name) for text in train | held_out)
    again = populate(config)
    assert [list(client.held_out) for client in again.clients] == [list(c.held_out) for c in population.clients]


def test_each_client_trains_what_its_entry_says_and_the_rest_what_the_star_says(tmp_path: Path) -> None:
    from fedpeft_sim.population import populate

    devices = '[[device]]\nclients = ["b"]\nmethods = ["lora"]\nrank = 2\nhead = false\n' + EVERYBODY
    clients = populate(config_of(tmp_path, {"a": 20, "b": 20, "c": 20}, devices)).clients
    assert [str(client.capacity) for client in clients] == ["bitfit", "lora r2", "bitfit"]
    assert [client.capacity.head for client in clients] == [True, False, True]


def test_clients_with_too_few_examples_are_left_out_and_counted(tmp_path: Path) -> None:
    from fedpeft_sim.population import populate

    population = populate(config_of(tmp_path, {"a": 20, "b": 3, "c": 20}, least=10))
    assert [client.name for client in population.clients] == ["a", "c"]
    assert population.left_out == {"b": 3}


def test_every_wrong_client_is_named_at_once(tmp_path: Path) -> None:
    from fedpeft_sim.population import populate

    devices = '[[device]]\nclients = ["a", "x", "y"]\nmethods = ["lora"]\n'
    with pytest.raises(ConfigInvalid) as refused:
        populate(config_of(tmp_path, {"a": 20, "b": 20}, devices))
    text = str(refused.value)
    assert all(f"found {name}" in text for name in "xy")
    assert "an entry for client b" in text


def test_a_client_whose_examples_are_all_the_same_cannot_be_measured(tmp_path: Path) -> None:
    from fedpeft_sim.population import populate

    with pytest.raises(DataInvalid):
        populate(config_of(tmp_path, {"a": 9}, same=True))


@pytest.mark.parametrize(("classes", "named"), [({"a": "n", "b": "y", "c": "ny"}, "a, b"), ({"a": "n"}, "")])
def test_clients_of_one_class_are_named_where_they_are_most(
    tmp_path: Path, classes: dict[str, str], named: str
) -> None:
    from fedpeft_sim.population import populate

    config = config_of(tmp_path, {"a": 20, "b": 20, "c": 20})
    rows = [json.loads(line) for line in (tmp_path / "notes.jsonl").read_text().splitlines()]
    for number, row in enumerate(rows):
        own = classes.get(row["site"], "ny")
        row["label"] = own[number % len(own)]
    (tmp_path / "notes.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (remark, *_) = [one for one in populate(config).remarks if "one class alone" in one] or [""]
    assert remark.startswith(f"2 of 3 clients hold one class alone ({named})" if named else "")
    assert bool(remark) == bool(named)


def people_config(folder: Path, rows: list[dict], *overrides: str) -> RunConfig:
    (folder / "notes.jsonl").write_text("\n".join(map(json.dumps, rows)))
    text = SOURCE.format(source=folder / "notes.jsonl", devices=EVERYBODY, least=1)
    privacy = '[privacy]\nunit = "person"\ncolumn = "who"\npersons = "do-not-cross"\nepsilon = 8.0\ndelta = 1e-3\n'
    text = text.replace("[adapter]", privacy + "[adapter]")
    return parse(text, source="run.toml", overrides=overrides, simulation=True)


def test_people_are_dealt_whole_and_a_column_under_which_somebody_is_twice_is_refused(tmp_path: Path) -> None:
    from fedpeft_sim.population import populate

    rows = [
        {"text": f"note {n}", "label": "yn"[n % 2], "site": f"ward {n % 3}", "who": f"patient {n % 20}"}
        for n in range(80)
    ]
    iid = ('data.partition.by="iid"', "data.partition.clients=3", 'data.partition.column=""')
    population = populate(people_config(tmp_path, rows, *iid))
    everyone = [
        {row["who"] for row in side} for client in population.clients for side in (client.train, client.held_out)
    ]
    assert sum(map(len, everyone)) == 20
    assert len(set().union(*everyone)) == 20
    with pytest.raises(DataInvalid, match="no person with two clients") as refused:
        populate(people_config(tmp_path, rows))
    assert "patient" not in str(refused.value)
    with pytest.raises(DataInvalid) as refused:
        populate(people_config(tmp_path, [*rows, {"text": "whose", "label": "y", "site": "ward 1", "who": ""}], *iid))
    assert [problem.expected for problem in refused.value.problems] == ["whose row this is"]
