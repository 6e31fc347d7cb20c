"""The folder of a local federation, without its processes."""

import json
import stat
from pathlib import Path

import pytest

from fedpeft.config import parse
from fedpeft.errors import ConfigInvalid, DataInvalid, RunFailed
from fedpeft.round.events import Event, EventKind
from fedpeft.round.transport import Stage
from fedpeft_client.site import Site
from fedpeft_server.jobs.job_queue import JobState
from fedpeft_sim.local_federation import LocalFederation
from fedpeft_sim.local_run import _tell
from fedpeft_sim.population import Population, populate

pytestmark = pytest.mark.torch  # the population's modules load it

RUN = """
[base]
model = "sha256:{digest}"
[task]
kind = "classify"
labels = ["a", "b"]
[data]
source = "{source}"
holdout = 0.25
partition = {{ by = "column", column = "site" }}
[adapter]
lora = {{ rank = 4, tiers = [2, 4] }}
[performance]
micro_batch = 2
[[device]]
clients = ["*"]
methods = {methods}
"""


def population(folder: Path, methods: str = '["lora"]\nrank = 2') -> Population:
    rows = [{"text": f"bird {i}", "label": "ab"[i % 2], "site": f"s{i % 3}"} for i in range(30)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = RUN.format(digest="0" * 64, source=folder / "rows.jsonl", methods=methods)
    return populate(parse(text, source="run.toml", simulation=True))


def test_every_client_gets_its_own_examples_and_rules_and_nobody_elses(tmp_path: Path) -> None:
    made = LocalFederation.make(tmp_path / "local", population(tmp_path))
    assert made.clients == ("s0", "s1", "s2")
    for number, name in enumerate(made.clients):
        home = tmp_path / "local" / "devices" / name
        site = Site.load(home / "site.toml")
        rows = [json.loads(line) for line in Path(site.data.source).read_text().splitlines()]
        assert [row["text"] for row in rows] == [f"bird {i}" for i in range(number, 30, 3)]
        assert (site.data.holdout, site.limits.methods, site.limits.rank) == (0.25, ("lora",), 2)
        assert site.limits.micro_batch == 2
        assert stat.S_IMODE(Path(site.data.source).stat().st_mode) == 0o600
    assert made.trains() == dict.fromkeys(made.clients, "lora r2")
    assert LocalFederation.reopen(made.path).clients == made.clients


def test_a_run_is_submitted_once_and_gone_on_with_afterwards(tmp_path: Path) -> None:
    people = population(tmp_path)
    made = LocalFederation.make(tmp_path / "local", people)
    with pytest.raises(DataInvalid, match="had begun its run"):
        made.config()
    job = made.submit(people.config, "sha256:" + "1" * 64)
    assert (job.number, job.state, made.config().base.model) == (1, JobState.QUEUED, "sha256:" + "1" * 64)
    assert made.submit(people.config, "").number == 1
    made._queue().stop(job)
    assert made.submit(people.config, "").state is JobState.QUEUED


def test_a_client_that_trains_the_head_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="class head alone"):
        LocalFederation.make(tmp_path / "local", population(tmp_path, methods="[]"))
    assert not (tmp_path / "local").exists()


def test_another_folder_is_no_federation(tmp_path: Path) -> None:
    with pytest.raises(DataInvalid, match=r"local\.json"):
        LocalFederation.reopen(tmp_path)


def test_a_process_that_ended_is_named_with_what_it_said(tmp_path: Path) -> None:
    with LocalFederation.make(tmp_path / "local", population(tmp_path)) as made:
        made.home.registry.write_bytes(b"no database" * 100)
        made.start_coordinator()
        with pytest.raises(RunFailed, match=r"coordinator to run, found that it ended with 6:\n"):
            made.until_ready()


def test_recorded_events_reach_the_screen_as_they_happened(tmp_path: Path) -> None:
    class Seen:
        def __init__(self) -> None:
            self.events: list[Event] = []

        def observe(self, event: Event) -> None:
            self.events.append(event)

        def note(self, text: str) -> None: ...

        def hint(self, text: str) -> None: ...

        def working(self, what: str, done: int, total: int) -> None: ...

    def line(kind: str, **fields: object) -> bytes:
        return json.dumps({"schema_version": 1, "at": "now", "kind": kind, **fields}).encode() + b"\n"

    path, seen = tmp_path / "events.jsonl", Seen()
    assert _tell(path, 0, seen) == 0
    answered = {"stage": "train.fit", "seconds": 1.5, "bytes_up": 3, "bytes_down": 4}
    path.write_bytes(
        line("learning.rates") + line("round.answered", round=2, client="s0", detail=answered) + b'{"schema_ver'
    )
    position = _tell(path, 0, seen)
    assert position == path.read_bytes().rfind(b"\n") + 1
    (event,) = seen.events
    assert (event.kind, event.round_id, event.stage, event.device) == (EventKind.ANSWERED, 2, Stage.FIT, "s0")
    assert (event.seconds, event.bytes_up, event.bytes_down) == (1.5, 3, 4)
    assert _tell(path, position, seen) == position
