"""What a secure sum costs, beside flwr 1.41's SecAgg+ in the same process (issue 3, "Bars").

    python benchmarks/secagg.py [--quick] [--skip-peer] [--thousand]

CPU seconds of the thread at work, the median device, the whole coordinator; the state machines alone on both sides,
without wire codec and transport, the garbage collector off. Progress on stderr, details in
benchmarks/results/secagg.json, and on the last line of stdout one JSON object: client_ratio, coordinator_ratio,
kernel_floor_fraction, bytes_per_parameter, coordinator_peak_mb. --quick takes less than a minute and measures smaller
rounds.
"""

import argparse
import gc
import json
import os
import platform
import resource
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from secure_sum.floor import kernel_floor_fraction
from secure_sum.memory import coordinator_peak_mb
from secure_sum.rounds import make_round, sessions_of
from secure_sum.secaggplus_peer import PeerCost, measure_secaggplus

from fedpeft.entropy import os_entropy
from fedpeft.ids import BlockId, ParticipantId
from fedpeft.secagg import (
    DevicePolicy,
    Mode,
    Open,
    Reply,
    Request,
    RoundOffer,
    Summed,
    close_stage,
    open_round,
    receive,
)
from fedpeft.secagg.primitives import forget_signatures
from fedpeft.wire import encode

RESULTS = Path(__file__).parent / "results" / "secagg.json"
CPU = time.thread_time


@dataclass(frozen=True)
class Cost:
    """One configuration of ours."""

    devices: int
    parameters: int
    bits: int
    mode: str
    dropped: int
    neighbours: int
    threshold: int
    client_s: float
    client_stages_s: dict[str, float]
    coordinator_s: float
    coordinator_stages_s: dict[str, float]
    bytes_per_parameter: float
    overhead_bytes_per_neighbour: float
    worst_error_steps: float
    wall_s: float


def log(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


def _collector_off() -> None:
    """On both sides: it would walk through the other devices of this process, which no real device has."""
    gc.collect()
    gc.disable()


def _replies(
    asked: Mapping[ParticipantId, Request], ask: Callable[[ParticipantId, Request], Reply], workers: int
) -> Iterator[tuple[ParticipantId, Reply]]:
    """Every device's reply, as many devices at work at once as there are workers, few replies waiting."""
    if workers == 1:
        yield from ((member, ask(member, request)) for member, request in asked.items())
        return
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[tuple[ParticipantId, Future[Reply]]] = deque()
        for member, request in asked.items():
            waiting.append((member, pool.submit(ask, member, request)))
            if len(waiting) > workers:
                done, reply = waiting.popleft()
                yield done, reply.result()
        while waiting:
            done, reply = waiting.popleft()
            yield done, reply.result()


def measure(
    devices: int,
    parameters: int,
    *,
    bits: int = 32,
    mode: Mode = Mode.FULL,
    dropout: float = 0.1,
    workers: int = 1,
) -> Cost:
    """One whole round, every device real; ``workers`` devices at a time."""
    spec, coordinator, keys = make_round(devices, parameters, bits, mode)
    policy = DevicePolicy(coordinator_key=coordinator.public, allow_fast=True)
    sessions = sessions_of(keys, policy)
    rng = np.random.default_rng(0)
    vectors = [rng.normal(0, 0.05, parameters).astype(np.float32) for _ in range(4)]
    counts = np.array([100, 90, 80, 12.5], np.float32)
    owns = frozenset(block.block_id for block in spec.blocks)
    gone = set(range(1, round(devices * dropout) + 1))
    client = {member: dict.fromkeys(("fit", "share", "mask", "consist", "reveal"), 0.0) for member in sessions}
    coordinator_s = dict.fromkeys(("fit", "share", "mask", "consist", "reveal"), 0.0)
    upload, begun = dict.fromkeys(sessions, 0), time.perf_counter()
    _collector_off()
    start = CPU()
    state = open_round(spec, identity=coordinator, entropy=os_entropy)
    coordinator_s["fit"] += CPU() - start
    neighbours = threshold = 0

    def ask(member: ParticipantId, request: Request, stage: str) -> Reply:
        values = {BlockId("adapter"): vectors[member % 4], BlockId("metrics"): counts}
        forget_signatures()  # no real device shares its process with the others
        start = CPU()
        if isinstance(request, RoundOffer):
            reply = sessions[member].begin(request, owns=owns, entropy=os_entropy)
        else:
            reply = sessions[member].answer("benchmark", request, inputs=lambda: values, rounding=os_entropy)
        client[member][stage] += CPU() - start
        return reply

    while isinstance(state, Open):
        stage = state.stage
        asked = {m: r for m, r in state.requests.items() if stage in ("fit", "share") or m not in gone}
        for member, reply in _replies(asked, lambda m, r, stage=stage: ask(m, r, stage), workers):
            if member % 10 == 0:
                upload[member] += len(encode(reply))
            start = CPU()
            state = receive(state, member, reply)
            coordinator_s[stage] += CPU() - start
            del reply
        start = CPU()
        if stage == "share":
            degree = state.progress.members.roster.degree
            neighbours, threshold = degree.neighbours, degree.threshold
        state = close_stage(state)
        coordinator_s[stage] += CPU() - start
    assert isinstance(state, Summed), state
    survivors = [member for member in sessions if member not in gone]
    expected = sum(np.clip(vectors[member % 4].astype(np.float64), -0.5, 0.5) for member in survivors)
    step = 0.5 / ((2**bits - 1) // (2 * devices))
    assert state.sums[BlockId("metrics")].values[0] == 100 * len(survivors)
    sized = [member for member in survivors if upload[member]] or survivors
    vector_bytes = parameters * bits / 8
    return Cost(
        devices=devices,
        parameters=parameters,
        bits=bits,
        mode=mode.value,
        dropped=len(gone),
        neighbours=neighbours,
        threshold=threshold,
        client_s=statistics.median(sum(client[member].values()) for member in survivors),
        client_stages_s={s: statistics.median(client[m][s] for m in survivors) for s in coordinator_s},
        coordinator_s=sum(coordinator_s.values()),
        coordinator_stages_s=coordinator_s,
        bytes_per_parameter=vector_bytes / parameters,
        overhead_bytes_per_neighbour=max((upload[m] - vector_bytes - 1024) / neighbours for m in sized),
        worst_error_steps=float(np.abs(state.sums[BlockId("adapter")].values - expected).max() / step),
        wall_s=time.perf_counter() - begun,
    )


def beside(ours: Cost, peer: PeerCost | None) -> dict[str, object]:
    """One line of the report."""
    line: dict[str, object] = {"fedpeft": asdict(ours)}
    if peer is not None:
        line |= {
            "flwr": asdict(peer),
            "client_ratio": peer.client_s / ours.client_s,
            "coordinator_ratio": peer.coordinator_s / ours.coordinator_s,
        }
        log(f"  flwr  client {peer.client_s * 1e3:8.1f} ms   coordinator {peer.coordinator_s:8.3f} s")
        log(f"  ratio client {line['client_ratio']:8.1f}      coordinator {line['coordinator_ratio']:8.1f}")
    return line


def compared(devices: int, parameters: int, *, peer: bool, repeats: int = 3, **options: object) -> dict[str, object]:
    """A configuration, ours (the median of several rounds) and flwr's."""
    log(f"{devices} devices, {parameters:,} parameters {options or ''}")
    rounds = [measure(devices, parameters, **options) for _ in range(repeats)]
    ours = sorted(rounds, key=lambda cost: cost.client_s + cost.coordinator_s)[len(rounds) // 2]
    log(f"  ours  client {ours.client_s * 1e3:8.1f} ms   coordinator {ours.coordinator_s:8.3f} s   {ours.wall_s:.1f} s")
    return beside(ours, measure_secaggplus(devices, parameters, 0.1) if peer else None)


def thousand_devices() -> dict[str, dict[str, object]]:
    """A thousand devices in this process, as many at work as the machine has cores."""
    population = {"peer": False, "repeats": 1, "workers": os.cpu_count() or 1}
    return {
        "1000/1e6/fast": compared(1000, 1_000_000, mode=Mode.FAST, **population),
        "1000/1e6": compared(1000, 1_000_000, **population),
    }


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="less than a minute, smaller rounds")
    parser.add_argument("--skip-peer", action="store_true", help="do not run flwr (minutes): no ratios")
    parser.add_argument("--thousand", action="store_true", help="only the thousand devices, anew into the kept results")
    arguments = parser.parse_args()
    if arguments.thousand:
        report = json.loads(RESULTS.read_text())
        report["rounds"] |= thousand_devices()
        report["thousand_load"] = os.getloadavg()
        RESULTS.write_text(json.dumps(report, indent=2) + "\n")
        print(json.dumps({name: line["fedpeft"]["wall_s"] for name, line in report["rounds"].items()}))
        return
    peer = not arguments.skip_peer
    log("kernel")
    kernel = kernel_floor_fraction()
    speed, floor = kernel["kernel_gb_s"], kernel["floor_gb_s"]
    log(f"  {speed:.2f} GB/s of {floor:.2f} ({kernel['backend']}): {kernel['fraction']:.2f}")
    rounds: dict[str, dict[str, object]] = {}
    if arguments.quick:
        rounds["16/3e5"] = compared(16, 300_000, peer=peer)
        peaks = {"8/3e5": coordinator_peak_mb(8, 300_000), "24/3e5": coordinator_peak_mb(24, 300_000)}
    else:
        rounds["32/1e6"] = compared(32, 1_000_000, peer=peer)
        rounds["100/1e6"] = compared(100, 1_000_000, peer=peer)
        rounds["100/1e6/16bit"] = compared(100, 1_000_000, peer=False, bits=16)
        rounds["100/1e6/fast"] = compared(100, 1_000_000, peer=False, mode=Mode.FAST)
        rounds |= thousand_devices()
        peaks = {"32/1e6": coordinator_peak_mb(32, 1_000_000), "100/1e6": coordinator_peak_mb(100, 1_000_000)}
    log(f"coordinator's memory {peaks}")
    largest = [line for line in rounds.values() if "client_ratio" in line]
    report = {
        "quick": arguments.quick,
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "load": os.getloadavg(),  # a busy machine slows the cache-bound masks more than the peer's Python
        },
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "kernel": kernel,
        "coordinator_peak_mb": peaks,
        "rounds": rounds,
    }
    if not arguments.quick:
        RESULTS.write_text(json.dumps(report, indent=2) + "\n")
    summary = {
        "client_ratio": largest[-1]["client_ratio"] if largest else None,
        "coordinator_ratio": largest[-1]["coordinator_ratio"] if largest else None,
        "kernel_floor_fraction": kernel["fraction"],
        "bytes_per_parameter": next(iter(rounds.values()))["fedpeft"]["bytes_per_parameter"],  # type: ignore[index]
        "coordinator_peak_mb": max(peaks.values()),
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
