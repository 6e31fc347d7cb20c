"""FIT of a plan without privacy, from "Work", "History" and "The blocks of a round" of docs/protocol.md."""

import hashlib
import json

import numpy as np

from tests.outsider.messages import encode
from tests.outsider.primitives import H


def f32(v):
    return np.asarray(v, "<f4").tobytes()


def sha(b):
    return hashlib.sha256(b).digest()


def state_digest(state):
    return H("state", *[p for b, v in state for p in (b, sha(f32(v)))])


def terms_for(learning, state, trained, sizes, r, cpk, links=(), first=None, work=None):
    """state: [(block id, values)] in order; sizes {block: [tensor lengths]}"""
    plan = json.loads(learning)
    st = state_digest(state)
    train = r <= plan["rounds"]["count"]
    w = {
        "plan": sha(learning.encode()),
        "state": st,
        "controls": H("controls"),
        "blocks": trained,
        "first_step": (r - 1) * plan["train"]["local_steps"],
        "learning_rate_factor": 1.0,
        "learning_rate_scale": 0.0,
        "eval_examples": plan["rounds"]["eval_examples"],
        "train": train,
    }
    w.update(work or {})
    wb = encode("WorkTerms", **w)
    first = first or st
    h = H("genesis", plan["run_id"], w["plan"], first, cpk)
    for link in links:
        h = H("link", h, encode("Link", **link))
    sa = plan["secagg"]

    def R(length, most):
        return {"length": length, "max_abs": most, "exact": False}

    blocks = [
        {
            "block_id": b,
            "ranges": [R(k, sa["max_abs"]) for k in sizes[b]],
            "bits": 32 if sa["bits"] == "auto" else sa["bits"],
        }
        for b in (trained if train else [])
    ]
    L = len(plan["task"]["labels"])
    blocks += [
        {"block_id": "metrics", "ranges": [R(1, 8.0), R(1, 1.0)], "bits": 64},
        {"block_id": "task-metrics", "ranges": [R(L * L, 1.0)], "bits": 64},
        {"block_id": "train-loss", "ranges": [R(1, 8.0)], "bits": 64},
    ]
    t = {
        "run_id": plan["run_id"],
        "round_id": r,
        "attempt": 1,
        "mode": sa["mode"],
        "blocks": blocks,
        "min_cohort": sa["min_cohort"],
        "corrupt_fraction": sa["corrupt_fraction"],
        "dropout_fraction": sa["dropout_fraction"],
        "stage_deadline_s": 60.0,
        "noise": None,
        "work": H("work", wb),
        "history": h,
    }
    return t, wb, encode("History", first=first, links=list(links))


def fit(co, learning, wb, hist, state, roster=True, sums=(), controls=()):
    return encode(
        "FitRequest",
        offer=co.offer(roster),
        learning=learning,
        work=wb,
        history=hist,
        payloads=[{"block_id": b, "values": f32(v)} for b, v in state],
        controls=list(controls),
        sums=list(sums),
    )
