"""The smallest valid run.toml, for tests that are about some other table of it."""

import json
from collections.abc import Sequence

__all__ = ["toy_run"]


def toy_run(rest: str = "", *, clients: int, name: str = "toy", labels: Sequence[str] = ("no", "yes")) -> str:
    """A classification run of LoRA on every client.

    Args:
        rest: further tables.
        clients: of the IID partition.
        name: of the run.
        labels: of the task; none: as the data has them.
    """
    known = f"labels = {json.dumps(labels)}\n" if labels else ""
    return f"""
[run]
name = "{name}"
[base]
model = "pypi:some-model"
[task]
kind = "classify"
{known}[data]
source = "x.jsonl"
partition = {{by = "iid", clients = {clients}}}
[adapter]
lora = {{rank = 4}}
{rest.strip()}
[[device]]
clients = ["*"]
methods = ["lora"]
"""
