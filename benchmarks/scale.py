"""What a round costs as its members grow (issue 23, "Bars"; docs/scale.md).

    python benchmarks/scale.py [--quick] [--fresh] [--cell NAME]

Three kinds of cells, each in a process of its own and kept in benchmarks/results/scale.json as it ends, so that what
was stopped goes on where it was (--fresh: from the beginning):

- ``sum/N/P``: two secure sums of N members and P parameters, state machines alone; CPU of a device and of the
  coordinator, and the bytes of a device, payload apart, in a first round and in one whose roster is known;
- ``bytes/N/P``: what FIT and SHARE send a device, from the requests alone;
- ``rounds/POPULATION/N``: rounds of N of so many virtual devices through the round engine and Flower's messages, no
  training; CPU seconds a round, all devices and the coordinator together, and the peak memory of the process.

On the last line of stdout one JSON object with the bars. --quick (less than a minute on a free core) measures smaller
cells and keeps nothing.
"""

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
from secure_sum.rounds import make_round, sessions_of

from fedpeft import secagg
from fedpeft.clock import SystemClock
from fedpeft.config.model import Rounds
from fedpeft.entropy import os_entropy, seeded_entropy
from fedpeft.flower import GridTransport, LocalGrid, NodeContext, client_app
from fedpeft.ids import BlockId, ParticipantId
from fedpeft.round.coordinator import run_round
from fedpeft.round.device.device import Device
from fedpeft.round.local import Identity
from fedpeft.round.transport import Stage
from fedpeft.secagg.primitives import forget_signatures
from fedpeft.testing.fleet import enrol, toy_task
from fedpeft.testing.trainers import GivenTrainer, toy_plan, toy_spec, toy_state
from fedpeft.wire import encode

RESULTS = Path(__file__).parent / "results" / "scale.json"
STAGES = ("fit", "share", "mask", "consist", "reveal")
CPU = time.process_time
QUICK = ("bytes/1000/10000", "sum/40/10000", "sum/150/10000", "rounds/300/60", "rounds/300/180")
FULL = (
    *(f"bytes/{members}/10000" for members in (100, 300, 1000, 3000)),
    *(f"sum/{members}/10000" for members in (100, 300, 1000)),
    "sum/1000/1000000",
    *(f"rounds/{members}/{members}" for members in (250, 500, 1000)),
    "rounds/10000/1000",
)


def log(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


def secure_sum(members: int, parameters: int) -> dict[str, object]:
    """Two rounds of the same members; every device real, and none of them shares what it has verified with another."""
    spec, coordinator, keys = make_round(members, parameters, 32, secagg.Mode.FULL)
    sessions = sessions_of(keys, secagg.DevicePolicy(coordinator_key=coordinator.public))
    values = {BlockId("adapter"): np.full(parameters, 0.01, np.float32), BlockId("metrics"): np.ones(4, np.float32)}
    found: dict[str, object] = {}
    for number, name in ((1, "first"), (2, "known_roster")):
        begun = CPU()
        state: secagg.CoordinatorState = secagg.open_round(
            replace(spec, round_id=number), identity=coordinator, entropy=os_entropy
        )
        coordinator_s = CPU() - begun
        device_s = dict.fromkeys(sessions, 0.0)
        down, up = dict.fromkeys(STAGES, 0), dict.fromkeys(STAGES, 0)
        while isinstance(state, secagg.Open):
            stage = state.stage
            for member in state.requests:
                begun = CPU()
                request = state.requests[member]
                coordinator_s += CPU() - begun
                if isinstance(request, secagg.RoundOffer) and number > 1:
                    request = replace(request, roster=b"")
                forget_signatures()
                begun = CPU()
                reply = _answer(sessions[member], request, values)
                device_s[member] += CPU() - begun
                vectors = sum(map(len, reply.vectors)) if isinstance(reply, secagg.MaskedInput) else 0
                down[stage] += len(encode(request))
                up[stage] += len(encode(reply)) - vectors
                begun = CPU()
                state = cast("secagg.Open", secagg.receive(state, member, reply))
                coordinator_s += CPU() - begun
            begun = CPU()
            state = secagg.close_stage(state)
            coordinator_s += CPU() - begun
        assert isinstance(state, secagg.Summed), state
        found[name] = {
            "device_ms": 1e3 * statistics.median(device_s.values()),
            "coordinator_s": coordinator_s,
            "down": {stage: total / members for stage, total in down.items()},
            "up": {stage: total / members for stage, total in up.items()},
            "fit_and_share_kb": (down["fit"] + down["share"]) / members / 1e3,
            "protocol_kb": (sum(down.values()) + sum(up.values())) / members / 1e3,
            "of_the_payload": 1 + (sum(down.values()) + sum(up.values())) / members / (4 * parameters),
        }
    return found


def first_requests(members: int, parameters: int) -> dict[str, object]:
    """What FIT and SHARE send a device, once with the roster and once without; nothing is trained, shared or masked."""
    spec, coordinator, keys = make_round(members, parameters, 32, secagg.Mode.FULL)
    sessions = sessions_of(keys, secagg.DevicePolicy(coordinator_key=coordinator.public))
    owns = frozenset(block.block_id for block in spec.blocks)
    state: secagg.CoordinatorState = secagg.open_round(spec, identity=coordinator, entropy=os_entropy)
    assert isinstance(state, secagg.Open)
    offer = cast("secagg.RoundOffer", state.requests[ParticipantId(1)])
    for member, session in sessions.items():
        state = secagg.receive(state, member, session.begin(offer, owns=owns, entropy=os_entropy))
    begun = CPU()
    state = secagg.close_stage(state)
    assert isinstance(state, secagg.Open)
    asked = [len(encode(state.requests[ParticipantId(place)])) for place in range(1, members + 1, members // 5)]
    fit, bare, share = len(encode(offer)), len(encode(replace(offer, roster=b""))), statistics.median(asked)
    return {
        "fit_kb": fit / 1e3,
        "fit_without_roster_kb": bare / 1e3,
        "share_kb": share / 1e3,
        "first_round_kb": (fit + share) / 1e3,
        "later_rounds_kb": (bare + share) / 1e3,
        "coordinator_s": CPU() - begun,
    }


def _answer(
    session: secagg.DeviceSession, request: secagg.Request, values: Mapping[BlockId, np.ndarray]
) -> secagg.Reply:
    if isinstance(request, secagg.RoundOffer):
        return session.begin(request, owns=frozenset(values), entropy=os_entropy)
    return session.answer("benchmark", request, inputs=lambda: values, rounding=os_entropy)


def rounds(population: int, members: int, *, count: int = 3) -> dict[str, object]:
    """Rounds of some of a population, over the grid of simulations; the training is given."""
    sizes = {"head": 300, "bitfit": 300}
    adapter = toy_spec(sizes)
    state, plan = toy_state(adapter), toy_plan(adapter)
    deltas = {name: np.full(size, 1e-3, np.float32) for name, size in sizes.items()}
    begun = CPU()
    fleet = enrol({f"d{number:05}": GivenTrainer(adapter, deltas) for number in range(population)})
    policy = secagg.DevicePolicy(coordinator_key=fleet.coordinator.public)
    for node, name in fleet.names.items():  # as in a simulation: what dies with the process is not written down
        session = secagg.DeviceSession(
            ledger=secagg.MemoryLedger(repeats=False),
            identity=fleet.keys[name],
            enrolled=secagg.Enrolled(device=name, organisation=name),
            policy=policy,
        )
        fleet.devices[node] = Device(
            identity=Identity(device=name, organisation=name, public_key=fleet.keys[name].public),
            trainer=fleet.trainers[name],
            session=session,
            store=fleet.stores[name],
            entropy=fleet.entropy,
            rounding=lambda run_id, round_id: seeded_entropy(0, "rounding", round_id),
        )
    enrolled_s = CPU() - begun

    def handle(node: NodeContext, stage: Stage, payload: bytes) -> bytes:
        return fleet.devices[node.node].handle(stage, payload)

    grid = LocalGrid(client_app(handle), devices=population, workers=2)
    everybody, rng = fleet.members(), np.random.default_rng(0)
    seconds: list[float] = []
    sent: list[float] = []
    for number in range(1, count + 1):
        chosen = [everybody[int(place)] for place in np.sort(rng.choice(population, members, replace=False))]
        begun = CPU()
        outcome = run_round(
            toy_task(plan, round_id=number, state=state),
            state,
            chosen,
            GridTransport(grid, SystemClock(), at_once=4),
            rounds=Rounds(count=count),
            identity=fleet.coordinator,
            entropy=os_entropy,
            observe=lambda event: None,
        )
        assert isinstance(outcome.result, secagg.Summed), outcome.result
        seconds.append(CPU() - begun)
        sent.append(sum(account.bytes_down + account.bytes_up for account in outcome.traffic.values()) / members)
        log(f"    round {number}: {seconds[-1]:.1f} CPU-s")
    grid.close()
    return {
        "enrolled_cpu_s": enrolled_s,
        "round_cpu_s": seconds,
        "kb_a_device": [value / 1e3 for value in sent],
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "load": os.getloadavg()[0],
    }


def measure(cell: str) -> dict[str, object]:
    """One cell, here."""
    kind, first, second = cell.split("/")
    return {"sum": secure_sum, "bytes": first_requests, "rounds": rounds}[kind](int(first), int(second))


def bars(cells: Mapping[str, Mapping[str, object]]) -> dict[str, float | None]:
    """What issue 23 asks for, as far as it was measured."""

    def of(cell: str, *path: str) -> float | None:
        found: object = cells.get(cell)
        for key in path:
            found = found.get(key) if isinstance(found, Mapping) else None
        return max(found) if isinstance(found, list) else cast("float | None", found)

    grown = sorted(
        (int(name.split("/")[2]), statistics.median(cast("list[float]", cell["round_cpu_s"])))
        for name, cell in cells.items()
        if name.startswith("rounds/") and name != "rounds/10000/1000"
    )
    exponent = None
    if len(grown) > 1:
        (few, less), (many, more) = grown[0], grown[-1]
        exponent = math.log(more / less) / math.log(many / few)
    return {
        "fit_and_share_kb_first": of("bytes/1000/10000", "first_round_kb"),
        "fit_and_share_kb_later": of("bytes/1000/10000", "later_rounds_kb"),
        "protocol_kb_first": of("sum/1000/10000", "first", "protocol_kb"),
        "protocol_kb_later": of("sum/1000/10000", "known_roster", "protocol_kb"),
        "of_the_payload": of("sum/1000/1000000", "first", "of_the_payload"),
        "coordinator_s": of("sum/1000/1000000", "first", "coordinator_s"),
        "device_ms": of("sum/1000/1000000", "first", "device_ms"),
        "round_cpu_s": of("rounds/10000/1000", "round_cpu_s"),
        "peak_rss_mb": of("rounds/10000/1000", "peak_rss_mb"),
        "growth_exponent": exponent,
    }


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller cells, less than a minute; nothing is kept")
    parser.add_argument("--fresh", action="store_true", help="measure what is kept anew")
    parser.add_argument("--cell", help="this cell alone, in this process; its JSON on stdout")
    arguments = parser.parse_args()
    if arguments.cell:
        print(json.dumps(measure(arguments.cell)))
        return
    keeps = not arguments.quick
    cells = json.loads(RESULTS.read_text()) if keeps and RESULTS.exists() and not arguments.fresh else {}
    for cell in QUICK if arguments.quick else FULL:
        if cell in cells:
            continue
        log(cell)
        command = [sys.executable, __file__, "--cell", cell]
        cells[cell] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout)
        if keeps:
            RESULTS.write_text(json.dumps(cells, indent=2) + "\n")
    print(json.dumps({"cells": cells} if arguments.quick else bars(cells)))


if __name__ == "__main__":
    main()
