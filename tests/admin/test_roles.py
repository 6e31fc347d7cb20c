"""Who may do what: every operation with every role, and what is written down of it."""

import pytest

from fedpeft_server.admin.access import Role
from fedpeft_server.admin.routes import OPERATIONS, Operation
from fedpeft_server.enrolment.registry import Status

VIEWER = {
    "status", "runs.list", "runs.show", "runs.report", "devices.list", "devices.show", "audit", "events",
}  # fmt: skip
SUBMITTER = VIEWER | {
    "runs.submit", "runs.clone", "runs.prefer", "runs.stop", "runs.resume", "runs.adapter", "runs.file",
}  # fmt: skip
ADMIN = SUBMITTER | {
    "devices.approve", "devices.deny", "devices.revoke", "devices.rename", "devices.group", "devices.delete",
    "join-tokens.list", "join-tokens.create", "join-tokens.revoke", "access-tokens.list", "access-tokens.revoke",
}  # fmt: skip
MAY = {"": set(), "viewer": VIEWER, "submitter": SUBMITTER, "admin": ADMIN}
NOBODY = {"access-tokens.create"}
"""From afar; on the coordinator's own machine its operator."""
VALUES = {"config": "[run", "code": "AAAA", "name": "n", "priority": 1, "member": True}


def asked(client, operation: Operation):
    path = operation.path
    for name in operation.parts:
        path = path.replace(f"{{{name}}}", "nothing")
    given = {name: VALUES.get(name, "x") for name, one in operation.fields.items() if one.required}
    return client.get(path, params=given) if operation.method == "GET" else client.post(path, json=given)


def test_the_table_names_every_operation() -> None:
    assert {one.name for one in OPERATIONS} | {"events"} == ADMIN | NOBODY


@pytest.fixture(scope="module")
def clients(port):
    made = {role: port.client(port.token(role) if role else "") for role in MAY}
    yield made
    for one in made.values():
        one.close()


@pytest.mark.parametrize("role", MAY)
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda one: one.name)
def test_an_operation_is_done_for_the_roles_of_the_table_and_for_no_other(operation, role, clients, port) -> None:
    answer = asked(clients[role], operation)
    if operation.name in MAY[role]:
        assert answer.status_code in (200, 201, 404, 422), answer.text
    else:
        assert answer.status_code in ((403,) if role else (401, 429)), answer.text


def test_a_viewer_is_told_no_code_by_which_a_device_is_admitted(port) -> None:
    port.device("ward-codes")
    with port.client(port.token("viewer")) as viewer, port.client(port.token("admin")) as admin:
        assert viewer.get("/v1/devices/ward-codes").json()["code"] is None
        assert admin.get("/v1/devices/ward-codes").json()["code"] == "ABCD-EFGH"
        assert "ABCD-EFGH" not in viewer.get("/v1/devices").text


def test_what_is_changed_is_in_the_audit_log_under_the_name_of_who_changed_it(fresh) -> None:
    fresh.device("ward-a")
    fresh.device("ward-b", Status.ACTIVE)
    with fresh.client(fresh.token("admin", name="dr.who")) as admin:
        made = admin.post("/v1/join-tokens", json={"uses": 2, "organisation": "clinic"})
        assert made.status_code == 201
        assert made.json()["token"].startswith("fp1.")
        assert admin.post(f"/v1/join-tokens/{made.json()['id']}/revoke").status_code == 200
        assert admin.post("/v1/devices/ward-a/deny", json={"reason": "unknown"}).status_code == 200
        assert admin.post("/v1/devices/ward-b/revoke", json={"reason": "lost"}).status_code == 200
        renamed = admin.post("/v1/devices/ward-a/rename", json={"label": "Ward A, third floor"})
        assert renamed.json()["label"] == "Ward A, third floor"
        assert admin.post("/v1/devices/ward-a/delete").status_code == 200
    audited = fresh.audited()
    events = [event for event, _, _ in audited]
    assert events == ["token-created", "token-revoked", "denied", "revoked", "renamed", "deleted"]
    assert all(actor.startswith("dr.who (token ") and "127.0.0.1" in actor for _, actor, _ in audited)
    assert made.json()["token"] not in fresh.site.home.audit.read_text()


def test_what_was_tried_in_vain_is_in_the_audit_log_but_only_so_often(fresh) -> None:
    token = fresh.token("viewer", name="curious")
    with fresh.client(token) as viewer:
        answers = [viewer.post("/v1/runs/1/stop").status_code for _ in range(30)]
    assert set(answers) == {403}
    assert [event for event, _, _ in fresh.audited()] == ["access-refused"] * 10
    assert all("curious" in actor for _, actor, _ in fresh.audited())


def test_no_token_can_make_another_one(port) -> None:
    with port.client(port.token("admin")) as admin:
        answer = admin.post("/v1/access-tokens", json={"name": "mine", "role": "admin"})
    assert answer.status_code == 403
    assert "own machine" in answer.json()["error"]


def test_a_revoked_or_ended_token_is_good_for_nothing_from_the_next_request_on(fresh) -> None:
    token = fresh.token("viewer")
    with fresh.client(token) as viewer, fresh.client(fresh.token("admin")) as admin:
        assert viewer.get("/v1/runs").status_code == 200
        (mine,) = [one for one in admin.get("/v1/access-tokens").json() if one["role"] == "viewer"]
        assert admin.post(f"/v1/access-tokens/{mine['id']}/revoke").status_code == 200
        assert viewer.get("/v1/runs").status_code == 401
    with fresh.site.registry.change() as db:
        db.execute("UPDATE access_tokens SET revoked = 0, expires_utc = 1")
    assert fresh.site.access.holder(token) is None


def test_the_registry_holds_no_token(port) -> None:
    token = port.token("admin")
    secret = token.split(".")[2]
    port.site.registry.rows("PRAGMA wal_checkpoint(TRUNCATE)")
    for file in port.site.home.path.glob("registry.sqlite*"):
        assert secret.encode() not in file.read_bytes()
    assert port.site.access.holder(token) is not None
    other = "A" if token[-60] != "A" else "B"
    assert port.site.access.holder(token[:-60] + other + token[-59:]) is None


@pytest.mark.parametrize("role", Role)
def test_roles_ascend(role: Role) -> None:
    assert MAY[role.word] > MAY.get(Role(role - 1).word if role > 1 else "", set())
