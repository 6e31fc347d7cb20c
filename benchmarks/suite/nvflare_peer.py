"""NVFlare and peft: NVFlare's own FedAvg recipe in its simulator, on the folder that ``handover.py`` writes.

NVFlare is not installed beside fedpeft: its interpreter is ``FEDPEFT_NVFLARE``, an environment with ``nvflare``, torch,
transformers and peft. This file is run by it, once as the job and once a client, and imports nothing of fedpeft.

A client does what NVFlare's examples of Hugging Face do: score the global adapter, train, send it back with the number
of its steps. All values travel as one float32 vector. Counted are the bytes of each message as NVFlare serializes it,
and each client's CPU seconds from its first message on; its server's are not, nor are imports and loading.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.suite.plain_peft import PlainClient, rate_of_round

__all__ = ["VARIABLE", "run"]

VARIABLE = "FEDPEFT_NVFLARE"
KEY = "numpy_key"
"""NVFlare's own name for the one array of a NumPy recipe."""


def flat(client: PlainClient) -> np.ndarray:
    """All that travels, in the order of its names."""
    arrays = client.arrays()
    return np.concatenate([arrays[name].ravel() for name in sorted(arrays)])


def load(client: PlainClient, vector: np.ndarray) -> None:
    """Takes the federation's values."""
    arrays, at = client.arrays(), 0
    for name in sorted(arrays):
        values = vector[at : at + arrays[name].size]
        at += arrays[name].size
        arrays[name] = values.reshape(arrays[name].shape).astype(arrays[name].dtype)
    if at != vector.size:
        raise ValueError(f"Expected {at} values, found {vector.size}.")
    client.load(arrays)


def as_client(folder: Path, rate: float, seed: int) -> None:
    """One client of the job, in the process that NVFlare made for it."""
    import nvflare.client as flare
    from nvflare.app_common.utils.fl_model_utils import FLModelUtils
    from nvflare.fuel.utils import fobs

    client = PlainClient(folder, seed)
    flare.init()
    name = client.names[int(flare.get_site_name().removeprefix("site-")) - 1]
    rows: list[dict[str, Any]] = []
    began = time.process_time()
    while flare.is_running():
        received = flare.receive()
        if received is None:
            break
        load(client, np.asarray(received.params[KEY]))
        loss, right, count = client.score(name, everything=False)
        round_id = int(received.current_round) + 1
        client.fit(name, round_id, rate_of_round(rate, round_id, client.cell["rounds"]))
        metrics = {"loss": loss / count, "accuracy": right / count}
        sent = flare.FLModel(
            params={KEY: flat(client)}, metrics=metrics, meta={"NUM_STEPS_CURRENT_ROUND": client.cell["steps"]}
        )
        down, up = (len(fobs.dumps(FLModelUtils.to_shareable(model))) for model in (received, sent))
        flare.send(sent)
        rows.append({"round": round_id, "loss": loss, "right": right, "count": count, "down": down, "up": up})
        spent = time.process_time() - began
        (folder / f"{name}.costs.json").write_text(json.dumps({"cpu_s": spent, "rounds": rows}), encoding="utf-8")


def run(folder: Path, *, rate: float, seed: int) -> dict[str, Any]:
    """FedAvg over the cell of the folder; 0 is FlowerTune's rate. As ``flower_peer.run``."""
    from nvflare.app_common.np.recipes.fedavg import NumpyFedAvgRecipe
    from nvflare.recipe.sim_env import SimEnv

    client = PlainClient(folder, seed)
    start = {name: client.score(name, everything=True) for name in client.names} if client.writes else None
    np.save(folder / "start.npy", flat(client))
    recipe = NumpyFedAvgRecipe(
        name="suite",
        initial_ckpt=str(folder / "start.npy"),
        min_clients=len(client.names),
        num_rounds=client.cell["rounds"],
        train_script=__file__,
        train_args=f"--client --folder {folder} --rate {rate} --seed {seed}",
    )
    with tempfile.TemporaryDirectory(prefix="nvflare-") as workspace:
        recipe.execute(SimEnv(num_clients=len(client.names), workspace_root=workspace))
        [made] = Path(workspace).rglob("server.npy")
        load(client, np.load(made))
    costs = {name: json.loads((folder / f"{name}.costs.json").read_text(encoding="utf-8")) for name in client.names}
    for name, cost in costs.items():
        if [row["round"] for row in cost["rounds"]] != list(range(1, client.cell["rounds"] + 1)):
            raise RuntimeError(
                f"Expected {name} in every round, found it in {[row['round'] for row in cost['rounds']]}."
            )
    curve = [mean(rows) for rows in zip(*(cost["rounds"] for cost in costs.values()), strict=True)]
    return {
        "start": start,
        "end": {name: client.score(name, everything=True) for name in client.names},
        "curve": curve[1:],  # a round scores the state that the round before has made
        "bytes_up": sum(row["up"] for cost in costs.values() for row in cost["rounds"]),
        "bytes_down": sum(row["down"] for cost in costs.values() for row in cost["rounds"]),
        "cpu_s": sum(cost["cpu_s"] for cost in costs.values()),
    }


def mean(rows: tuple[dict[str, Any], ...]) -> dict[str, float]:
    """Of a round's clients, by their examples."""
    count = sum(row["count"] for row in rows)
    return {"loss": sum(r["loss"] for r in rows) / count, "accuracy": sum(r["right"] for r in rows) / count}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--client", action="store_true")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--seed", type=int)
    options = parser.parse_args()
    if options.client:
        as_client(options.folder, options.rate, options.seed)
        sys.exit()
    said = run(options.folder, rate=options.rate, seed=options.seed)
    (options.folder / "found.json").write_text(json.dumps(said), encoding="utf-8")
