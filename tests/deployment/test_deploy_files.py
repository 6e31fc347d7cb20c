"""The files that operators start from: accepted by the tools that read them, and hardened as they say."""

import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from click import Command, Group

from fedpeft.cli.client import command as client
from fedpeft.cli.coordinator import command as coordinator
from fedpeft.round.events import EventKind

ROOT = Path(__file__).parents[2]
UNITS = (ROOT / "server/deploy/fedpeft-coordinator.service", ROOT / "clients/deploy/fedpeft-device.service")
COMPOSE = (ROOT / "server/deploy/compose.yaml", ROOT / "clients/deploy/compose.yaml")
KUBERNETES = (ROOT / "server/deploy/kubernetes.yaml", ROOT / "clients/deploy/kubernetes.yaml")


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def pods() -> list[dict[str, Any]]:
    return [
        each["spec"]["template"]["spec"] for path in KUBERNETES for each in documents(path) if "template" in str(each)
    ]


def options_of(group: Group, words: list[str]) -> tuple[Command, list[str]]:
    """The command that the words call, and the options that they give it."""
    command: Command = group
    while isinstance(command, Group) and words:
        command, words = command.commands[words[0]], words[1:]
    return command, re.findall(r"--[a-z-]+", " ".join(words))


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.stem)
def test_systemd_accepts_the_unit_and_finds_it_little_exposed(unit: Path, tmp_path: Path):
    here = tmp_path / unit.name
    here.write_text(unit.read_text().replace("/opt/fedpeft/bin/fedpeft", "/bin/true"))
    verified = subprocess.run(["systemd-analyze", "verify", here], capture_output=True, text=True, check=False)
    complaints = [line for line in verified.stderr.splitlines() if unit.name in line]
    assert complaints == []
    rated = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--threshold=20", here],
        capture_output=True,
        text=True,
        check=False,
    )
    assert rated.returncode == 0, rated.stdout[-2000:] + rated.stderr


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.stem)
def test_no_unit_restarts_what_only_a_person_can_mend(unit: Path):
    settings = dict(line.split("=", 1) for line in unit.read_text().splitlines() if re.match(r"[A-Z]\w*=", line))
    assert settings["Restart"] == "on-failure"
    assert {"3", "4", "6", "7"} <= set(settings["RestartPreventExitStatus"].split())
    assert settings["DynamicUser"] == "yes"


@pytest.mark.parametrize("path", COMPOSE, ids=lambda path: path.parts[-3])
def test_compose_services_are_locked_down(path: Path):
    (content,) = documents(path)
    for service in content["services"].values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert "no-new-privileges:true" in service["security_opt"]
        assert not service["user"].startswith("0")
        published = [str(port) for port in service.get("ports", [])]
        assert not any(port.endswith(":8447") for port in published), "loopback ports stay inside"
        assert (path.parent / service["build"]["context"] / service["build"]["dockerfile"]).is_file()


def test_pods_run_without_root_privileges_tokens_or_a_writable_root():
    assert len(pods()) == 2
    for pod in pods():
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in itertools.chain(pod.get("initContainers", ()), pod["containers"]):
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert "memory" in container["resources"]["limits"]


def test_every_pod_has_a_network_policy_for_both_directions():
    policies = [each for path in KUBERNETES for each in documents(path) if each["kind"] == "NetworkPolicy"]
    chosen = {policy["spec"]["podSelector"]["matchLabels"]["app"] for policy in policies}
    assert chosen == {"coordinator", "device"}
    assert all(set(policy["spec"]["policyTypes"]) == {"Ingress", "Egress"} for policy in policies)


def test_administration_is_published_to_nobody_but_the_machine_itself_or_labelled_pods():
    (compose,) = documents(COMPOSE[0])
    published = [str(port) for port in compose["services"]["coordinator"]["ports"] if str(port).endswith(":8446")]
    assert published == ["127.0.0.1:8446:8446"]
    kinds = [each for each in documents(KUBERNETES[0]) if each["kind"] in ("Service", "NetworkPolicy")]
    services = {each["metadata"]["name"]: each["spec"] for each in kinds if each["kind"] == "Service"}
    assert 8446 not in [port["port"] for port in services["coordinator"]["ports"]]
    assert services["coordinator-admin"]["type"] == "ClusterIP"
    (policy,) = [each["spec"] for each in kinds if each["kind"] == "NetworkPolicy"]
    open_to = {port["port"]: rule.get("from") for rule in policy["ingress"] for port in rule["ports"]}
    assert {port for port, sources in open_to.items() if sources is None} == {8443, 8444, 8445}
    assert open_to[8446] == [{"podSelector": {"matchLabels": {"fedpeft-admin": "true"}}}]


def test_there_is_one_coordinator():
    (stateful,) = [each for each in documents(KUBERNETES[0]) if each["kind"] == "StatefulSet"]
    assert stateful["spec"]["replicas"] == 1


def test_the_files_call_commands_and_options_that_exist():
    called = 0
    for path in (*UNITS, *COMPOSE, *KUBERNETES):
        text = re.sub(r"[\[\]\",]", " ", path.read_text()).replace("`", "\n")
        for role, words in re.findall(r"\b(coordinator|client) ((?:up|run|init|join|token create)\b[^\n]*)", text):
            command, options = options_of(coordinator if role == "coordinator" else client, words.split())
            known = {name for option in command.params for name in option.opts}
            assert set(options) <= known, f"{path.name}: {role} {words}"
            called += 1
    assert called >= 10


def told_labels() -> dict[str, set[str]]:
    """The names that a coordinator's /metrics has, with their labels."""
    found: dict[str, set[str]] = {}
    for path in (ROOT / "server/fedpeft_server").rglob("*.py"):
        for name, rest in re.findall(r'\b(?:count|gauge)\(\s*"(\w+)"([^\n]*)', path.read_text()):
            found.setdefault(name, set()).update(re.findall(r"\b(\w+)=", rest))
    return found


def test_the_dashboard_of_grafana_shows_what_a_coordinator_tells():
    board, told = json.loads((ROOT / "server/deploy/grafana.json").read_text()), told_labels()
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"]) > 0
    assert [one["name"] for one in board["templating"]["list"]] == ["source"]
    for panel in board["panels"]:
        assert panel["datasource"]["uid"] == "${source}"
        places = [(panel["gridPos"]["x"] + dx, panel["gridPos"]["y"]) for dx in (0, panel["gridPos"]["w"] - 1)]
        assert all(0 <= x < 24 for x, _ in places)
        for target in panel["targets"]:
            (name,) = re.findall(r"fedpeft_(\w+)", target["expr"])
            labels = {
                *re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]),
                *re.findall(r"by \((\w+)\)", target["expr"]),
            }
            assert name in told, panel["title"]
            assert labels <= told[name], panel["title"]
            assert name.endswith("_total") == bool(re.search(r"\b(rate|increase)\(", target["expr"])), panel["title"]
            assert target["expr"].count("(") == target["expr"].count(")")


def test_alerts_watch_what_a_coordinator_tells_and_the_page_says_what_to_do_about_each():
    (group,) = documents(ROOT / "server/deploy/alerts.yaml")[0]["groups"]
    page = (ROOT / "docs/operation.md").read_text()
    told = set(told_labels())
    kinds = {kind.value for kind in EventKind}
    assert group["rules"]
    for rule in group["rules"]:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert f"`{rule['alert']}`" in page
        names = set(re.findall(r"fedpeft_(\w+)", rule["expr"]))
        assert names <= told, rule["alert"]
        assert names or "up{" in rule["expr"]
        assert set(re.findall(r'kind="(\w+)"', rule["expr"])) <= kinds
        assert rule["expr"].count("(") == rule["expr"].count(")")
        assert re.fullmatch(r"\d+[smhd]", rule.get("for", "1m"))
