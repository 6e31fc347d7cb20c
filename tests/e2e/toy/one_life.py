"""`one_life.py WHERE FATAL`: a run of one round with its devices, on files, killed after its FATAL-th durable write.

Writes count from the run's first attempt on; 0: never. Every sum that the coordinator sees is a line in
WHERE/sums.jsonl.
"""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "server"))
from crashes import Writes, kill, watching_sums
from world import World, one_hot_fleet

from fedpeft import secagg
from fedpeft.ids import NodeId
from fedpeft.testing.fleet import ToyFleet
from fedpeft_client.training.device_stores import FileStore


def on_files(fleet: ToyFleet, where: Path) -> ToyFleet:
    """The same devices with what a real one keeps, where a real one keeps it."""
    for node, name in fleet.names.items():
        device, home = fleet.devices[NodeId(node)], where / "devices" / name
        session = device._session
        assert isinstance(session, secagg.DeviceSession)
        session._ledger = secagg.FileLedger(home / "ledger", fleet.keys[name], new=True)
        device._store = FileStore(home)
    return fleet


def main() -> None:
    where, fatal = Path(sys.argv[1]), int(sys.argv[2])
    runs = where / "runs"
    runs.mkdir(exist_ok=True)
    world = World(runs, on_files(one_hot_fleet(), where), count=1)
    world.path = next(iter(runs.glob("*/")), None)

    def saw(round_id: int, survivors: tuple[int, ...], values: dict[str, list[float]]) -> None:
        with (where / "sums.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"round": round_id, "survivors": survivors, "values": values}) + "\n")
            file.flush()
            os.fsync(file.fileno())

    begun = 6  # run.toml, resolved.toml, adapter.json, attempts.json, manifest.json, and what recovery removes
    writes = Writes(kill, begun + fatal if fatal else 0)
    with watching_sums(saw), writes.counted():
        world.train()


if __name__ == "__main__":
    main()
