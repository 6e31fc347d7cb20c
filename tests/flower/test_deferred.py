"""Flower's SQL stores: not loaded with the coordinator, and there for whoever makes one."""

import subprocess
import sys

LOADED = """
import fedpeft_server.coordinator, fedpeft_client.process.agent, sys
print([name for name in ("sqlalchemy", "alembic", "torch", "transformers") if name in sys.modules])
"""
MADE = """
import fedpeft.flower.superlink
from flwr.server.superlink.linkstate import SqlLinkState
from flwr.supercore.object_store.object_store_factory import SqlObjectStore
from flwr.server.superlink.linkstate.sql_linkstate import MessageInsModel
print(type(SqlObjectStore(":memory:")).__module__, MessageInsModel.__tablename__)
"""


def printed(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_neither_the_coordinator_nor_a_device_that_waits_loads_what_it_does_not_use() -> None:
    assert printed(LOADED) == "[]"


def test_whoever_makes_one_gets_flowers_own() -> None:
    assert printed(MADE) == "flwr.supercore.object_store.sql_object_store message_ins"
