"""flwr 1.41's SecAgg+ driven with its own functions: the peer of benchmarks/secagg.py.

Clients run flwr's mod stages and the server runs ``SecAggPlusWorkflow``'s own stage methods; only the transport between
them is ours, so that client and server CPU time can be told apart. Key shares are made by every client, because the
server's reconstruction needs them; the masked vector is computed by a few clients only and sent by all, which changes
nothing for the server's cost.
"""

import gc
import importlib
import logging
import statistics
import time
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common import Code, FitRes, Status, ndarrays_to_parameters
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, Key, Stage
from flwr.compat.common import recorddict_compat as compat
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD
from flwr.server.workflow.constant import Key as WorkflowKey
from flwr.server.workflow.secure_aggregation.secaggplus_workflow import WorkflowState
from flwr.supercore.task_identity import TaskIdentity

# The package exports a function under the module's name.
mod = importlib.import_module("flwr.client.mod.secure_aggregation.secaggplus_mod")

__all__ = ["PeerCost", "measure_secaggplus"]


@dataclass
class PeerCost:
    """CPU seconds: the median client, and the server."""

    client_s: float
    coordinator_s: float
    bytes_per_parameter: float
    parts: dict[str, float] = field(default_factory=dict)


class _Clients:
    """A Grid whose other end is flwr's own client stages."""

    def __init__(self, count: int, parameters: int, vectors: int, drop: set[int]) -> None:
        self.states = {nid: mod.SecAggPlusState() for nid in range(1, count + 1)}
        self.cost = dict.fromkeys(self.states, 0.0)
        self.measured: set[int] = set()
        self.drop, self.left = drop, vectors
        self.vector = np.random.default_rng(0).normal(0, 0.05, parameters).astype(np.float32)
        self.masked: list[bytes] = []
        self.total = 0.0

    def send_and_receive(self, messages: list[Message], timeout: float | None = None) -> list[Message]:
        begin, replies = time.process_time(), []
        for message in messages:
            reply = self._client(message)
            if reply is not None:
                replies.append(reply)
        self.total += time.process_time() - begin
        return replies

    def _client(self, message: Message) -> Message | None:
        nid = message.metadata.dst_node_id
        state, configs = self.states[nid], dict(message.content.config_records[RECORD_KEY_CONFIGS])
        stage = configs.pop(Key.STAGE)
        if stage in (Stage.COLLECT_MASKED_VECTORS, Stage.UNMASK) and nid in self.drop:
            return None
        start = time.process_time()
        if stage == Stage.SHARE_KEYS:
            result = mod._share_keys(state, configs)
        elif stage == Stage.COLLECT_MASKED_VECTORS:
            result = self._vectors(nid, state, configs)
        else:
            result = mod._unmask(state, configs)
        self.cost[nid] += time.process_time() - start
        content = RecordDict()
        if stage == Stage.COLLECT_MASKED_VECTORS:
            fit = FitRes(Status(Code.OK, ""), ndarrays_to_parameters([]), 1, {})
            content = compat.fitres_to_recorddict(fit, keep_input=False)
        content.config_records[RECORD_KEY_CONFIGS] = ConfigRecord(result, False)
        return Message(content, reply_to=message)

    def _vectors(self, nid: int, state: object, configs: dict) -> dict:
        if self.left > 0:
            self.left -= 1
            self.measured.add(nid)
            result = mod._collect_masked_vectors(state, configs, 1, ndarrays_to_parameters([self.vector]))
            self.masked = result[Key.MASKED_PARAMETERS]
            return result
        # The same opening of boxes, without the vector work; the server only needs some bytes of the right size.
        tiny = ndarrays_to_parameters([self.vector[:1]])
        mod._collect_masked_vectors(state, configs, 1, tiny)
        return {Key.MASKED_PARAMETERS: self.masked}


def measure_secaggplus(count: int, parameters: int, dropout: float, vectors: int = 3) -> PeerCost:
    """One round of ``count`` clients in a complete graph."""
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    drop = set(range(1, round(count * dropout) + 1))
    gc.collect()
    gc.disable()  # as for our side
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    clients = _Clients(count, parameters, vectors, drop)
    workflow = SecAggPlusWorkflow(num_shares=1.0, reconstruction_threshold=2 / 3, max_weight=1.0, clipping_range=8.0)
    state = _after_setup(clients, workflow)
    context = SimpleNamespace(
        state=SimpleNamespace(config_records={MAIN_CONFIGS_RECORD: ConfigRecord({WorkflowKey.CURRENT_ROUND: 1})}),
        strategy=SimpleNamespace(aggregate_fit=lambda *_: (None, {})),
    )
    parts = {}
    for name in ("share_keys", "collect_masked_vectors", "unmask"):
        before, start = clients.total, time.process_time()
        assert getattr(workflow, f"{name}_stage")(clients, context, state), f"flwr halted in {name}"
        parts[name] = time.process_time() - start - (clients.total - before)
    size = sum(map(len, clients.masked))
    return PeerCost(
        client_s=statistics.median(clients.cost[nid] for nid in clients.measured),
        coordinator_s=sum(parts.values()),
        bytes_per_parameter=size / parameters,
        parts=parts,
    )


def _after_setup(clients: _Clients, workflow: SecAggPlusWorkflow) -> WorkflowState:
    """What ``setup_stage`` leaves behind for a complete graph; its own cost is nothing."""
    everyone = set(clients.states)
    state = WorkflowState(
        nid_to_fitins={nid: RecordDict() for nid in everyone},
        nid_to_proxies=dict.fromkeys(everyone),
        sampled_node_ids=set(everyone),
        active_node_ids=set(everyone),
        num_shares=len(everyone),
        threshold=round(len(everyone) * 2 / 3),
        clipping_range=workflow.clipping_range,
        quantization_range=workflow.quantization_range,
        mod_range=workflow.modulus_range,
        max_weight=workflow.max_weight,
        nid_to_neighbours={nid: set(everyone) for nid in everyone},
    )
    terms = {
        Key.SAMPLE_NUMBER: len(everyone),
        Key.SHARE_NUMBER: state.num_shares,
        Key.THRESHOLD: state.threshold,
        Key.CLIPPING_RANGE: state.clipping_range,
        Key.TARGET_RANGE: state.quantization_range,
        Key.MOD_RANGE: state.mod_range,
        Key.MAX_WEIGHT: state.max_weight,
    }
    for nid, client in clients.states.items():
        client.nid = nid
        start = time.process_time()
        keys = mod._setup(client, terms)
        clients.cost[nid] += time.process_time() - start
        state.nid_to_publickeys[nid] = [keys[Key.PUBLIC_KEY_1], keys[Key.PUBLIC_KEY_2]]
    return state
