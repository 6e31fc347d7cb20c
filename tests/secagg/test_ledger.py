"""The ledger: sealed, 0600, durable before it returns, and not to be rolled back."""

import os
import stat
from pathlib import Path

import pytest

from fedpeft.entropy import os_entropy, seeded_entropy
from fedpeft.errors import IntegrityFailed
from fedpeft.ids import BlockId, ParticipantId
from fedpeft.kept_file import KeptFile
from fedpeft.secagg import DeviceSession, FileLedger, HighWaterMark, IdentityKey, MemoryLedger, Reason, Refusal, Summed
from fedpeft.secagg.device_state import Advertised, Closed, Masked
from fedpeft.testing.secagg import Round
from fedpeft.testing.secagg_fleet import Fleet, make_fleet, make_spec

ONE = ParticipantId(1)


def with_files(directory: Path, devices: int = 5) -> tuple[Fleet, FileLedger]:
    """A fleet whose first device keeps its ledger in files."""
    fleet = make_fleet(devices)
    ledger = FileLedger(directory / "ledger", fleet.identities[0], new=True)
    fleet.sessions[ONE] = DeviceSession(
        ledger=ledger, identity=fleet.identities[0], enrolled=fleet.enrolled(ParticipantId(1)), policy=fleet.policy
    )
    return fleet, ledger


def test_a_round_on_files_sums_and_only_its_owner_may_read_them(tmp_path: Path) -> None:
    fleet, ledger = with_files(tmp_path)
    assert isinstance(Round(fleet=fleet, spec=make_spec(fleet)).run(), Summed)
    assert isinstance(ledger.load("run"), Closed)
    assert stat.S_IMODE((tmp_path / "ledger").stat().st_mode) == 0o700
    files = sorted((tmp_path / "ledger").iterdir())
    assert [file.suffix for file in files] == [".state", ""]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


def test_the_file_shows_neither_the_root_nor_the_run(tmp_path: Path) -> None:
    fleet, ledger = with_files(tmp_path)
    a = Round(fleet=fleet, spec=make_spec(fleet, run_id="run"))
    a.reach("share")
    state = ledger.load("run")
    assert isinstance(state, Advertised)
    for file in (tmp_path / "ledger").iterdir():
        content = file.read_bytes()
        assert state.root.value not in content
        assert b"run" not in content
        assert state.reply.mask_key not in content


def test_another_device_cannot_open_it(tmp_path: Path) -> None:
    fleet, _ = with_files(tmp_path)
    Round(fleet=fleet, spec=make_spec(fleet)).reach("share")
    with pytest.raises(IntegrityFailed, match="sealed by this device"):
        FileLedger(tmp_path / "ledger", IdentityKey.generate(os_entropy))


@pytest.mark.parametrize("place", [7, 8, 20, 100, -1], ids=["sequence", "nonce", "sealed", "later", "tag"])
def test_a_changed_byte_is_noticed(tmp_path: Path, place: int) -> None:
    """By the seal, whatever the file around it says: here it is written anew, as somebody who knows its form would.

    The sequence becomes a later one, which nothing but the seal can tell from the true one.
    """
    fleet, ledger = with_files(tmp_path)
    Round(fleet=fleet, spec=make_spec(fleet)).reach("share")
    (path,) = (tmp_path / "ledger").glob("*.state")
    sealed = KeptFile(path).read()
    assert sealed is not None
    changed = bytearray(sealed)
    changed[place] ^= 4
    KeptFile(path).write(bytes(changed))
    with pytest.raises(IntegrityFailed, match="sealed by this device"):
        ledger.load("run")


def test_states_of_before_a_reset_are_gone_from_the_disk_before_its_marks_are_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut may bring back what was removed from a directory that was not synced: nothing would refuse it."""
    fleet, _ = with_files(tmp_path)
    Round(fleet=fleet, spec=make_spec(fleet)).reach("reveal")
    marks = tmp_path / "ledger" / "marks"
    before, synced = KeptFile(marks).read(), []
    fsync = os.fsync

    def noted(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            synced.append((list(marks.parent.glob("*.state")), KeptFile(marks).read()))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", noted)
    FileLedger.create(marks.parent, fleet.identities[0], barrier=True)
    assert ([], before) in synced
    assert KeptFile(marks).read() != before


@pytest.mark.parametrize("restarted", [True, False])
def test_a_state_file_put_back_from_a_backup_is_refused(tmp_path: Path, restarted: bool) -> None:
    fleet, ledger = with_files(tmp_path)
    a = Round(fleet=fleet, spec=make_spec(fleet))
    a.reach("mask")
    (file,) = (tmp_path / "ledger").glob("*.state")
    backup = file.read_bytes()
    Round(fleet=fleet, spec=make_spec(fleet, attempt=2)).reach("reveal")
    file.write_bytes(backup)
    reader = FileLedger(tmp_path / "ledger", fleet.identities[0]) if restarted else ledger
    with pytest.raises(IntegrityFailed, match="rolled back"):
        reader.load("run")


def test_both_files_put_back_are_noticed_by_the_running_process(tmp_path: Path) -> None:
    fleet, ledger = with_files(tmp_path)
    Round(fleet=fleet, spec=make_spec(fleet)).reach("mask")
    backup = {file: file.read_bytes() for file in (tmp_path / "ledger").iterdir()}
    Round(fleet=fleet, spec=make_spec(fleet, attempt=2)).reach("mask")
    for file, content in backup.items():
        file.write_bytes(content)
    with pytest.raises(IntegrityFailed, match="rolled back"):
        ledger.load("run")


def test_the_mark_outlives_the_state(tmp_path: Path) -> None:
    fleet, ledger = with_files(tmp_path)
    spec = make_spec(fleet)
    Round(fleet=fleet, spec=spec).reach("reveal")
    for state in (tmp_path / "ledger").glob("*.state"):
        state.unlink()
    assert ledger.load("run") is None
    again = FileLedger(tmp_path / "ledger", fleet.identities[0])
    mark = again.mark("run")
    assert mark is not None
    assert mark == HighWaterMark(round_id=1, attempt=1, agreed=True, signed=mark.signed, history=spec.history)
    assert len(mark.signed) == 32, "which survivors it signed"
    fleet.sessions[ONE] = DeviceSession(
        ledger=again, identity=fleet.identities[0], enrolled=fleet.enrolled(ParticipantId(1)), policy=fleet.policy
    )
    a = Round(fleet=fleet, spec=make_spec(fleet, attempt=2))
    assert isinstance(a.ask(ONE, a.open().requests[ONE]), Refusal)


def test_a_crash_between_the_two_files_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet, ledger = with_files(tmp_path)
    a = Round(fleet=fleet, spec=make_spec(fleet))
    request = a.reach("share").requests[ONE]

    def power_cut(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ledger, "_write_mark", power_cut)
    with pytest.raises(KeyboardInterrupt):
        a.ask(ONE, request)
    again = FileLedger(tmp_path / "ledger", fleet.identities[0])
    fleet.sessions[ONE] = DeviceSession(
        ledger=again, identity=fleet.identities[0], enrolled=fleet.enrolled(ParticipantId(1)), policy=fleet.policy
    )
    assert not isinstance(a.ask(ONE, request), Refusal)


def test_a_crash_while_writing_leaves_the_old_state_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet, ledger = with_files(tmp_path)
    a = Round(fleet=fleet, spec=make_spec(fleet))
    request = a.reach("share").requests[ONE]
    before = ledger.load("run")

    def power_cut(_: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", power_cut)
        with pytest.raises(KeyboardInterrupt):
            a.ask(ONE, request)
    again = FileLedger(tmp_path / "ledger", fleet.identities[0])
    assert again.load("run") == before
    fleet.sessions[ONE] = DeviceSession(
        ledger=again, identity=fleet.identities[0], enrolled=fleet.enrolled(ParticipantId(1)), policy=fleet.policy
    )
    assert not isinstance(a.ask(ONE, request), Refusal)


def test_the_state_is_on_disk_before_the_reply_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """State and mark are synced, each whole in a file that is new or in a half that was not in use."""
    fleet, ledger = with_files(tmp_path)
    offer = Round(fleet=fleet, spec=make_spec(fleet)).open().requests[ONE]
    events: list[str] = []
    fsync, rename = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (events.append("fsync"), fsync(handle))[1])
    monkeypatch.setattr(Path, "replace", lambda self, target: (events.append("rename"), rename(self, target))[1])
    in_place = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda handle: (events.append("fdatasync"), in_place(handle))[1])
    fleet.sessions[ONE].begin(offer, owns=frozenset({BlockId("b")}), entropy=seeded_entropy(1))
    assert events == ["fsync", "rename", "fsync", "fdatasync"], "a new state, and the marks that were there"
    assert isinstance(ledger.load("run"), Advertised)


def test_states_are_numbered_from_one_without_a_gap_over_restarts_and_rounds_sat_out(tmp_path: Path) -> None:
    """What a state put back is known by."""
    fleet, ledger = with_files(tmp_path)
    Round(fleet=fleet, spec=make_spec(fleet)).reach("share")
    state = ledger.load("run")
    assert state is not None

    def number() -> int:
        (file,) = (tmp_path / "ledger").glob("*.state")
        sealed = KeptFile(file).read()
        assert sealed is not None
        return int.from_bytes(sealed[:8], "big")

    assert number() == 1
    ledger.save("run", state)
    assert number() == 2
    again = FileLedger(tmp_path / "ledger", fleet.identities[0])
    again.save("run", state)
    assert number() == 3
    mark = again.mark("run")
    assert mark is not None
    again.sit_out("run", mark)
    again.save("run", state)
    assert number() == 4


def process(fleet: Fleet, ledger: FileLedger) -> None:
    """The first device's next process, with this ledger."""
    fleet.sessions[ONE] = DeviceSession(
        ledger=ledger, identity=fleet.identities[0], enrolled=fleet.enrolled(ONE), policy=fleet.policy
    )


def test_a_ledger_that_is_gone_is_a_loss_and_not_a_beginning(tmp_path: Path) -> None:
    fleet, _ = with_files(tmp_path)
    Round(fleet=fleet, spec=make_spec(fleet)).reach("reveal")
    for file in (tmp_path / "ledger").iterdir():
        file.unlink()
    with pytest.raises(IntegrityFailed, match="reset-ledger"):
        FileLedger(tmp_path / "ledger", fleet.identities[0])


def test_a_lost_ledger_sits_one_round_out(tmp_path: Path) -> None:
    """Whether it had signed in round 3 it cannot know: it takes part in no attempt at it, and in round 4 it does."""
    fleet, _ = with_files(tmp_path, devices=6)
    assert isinstance(Round(fleet=fleet, spec=make_spec(fleet, round_id=3)).run(), Summed)
    process(fleet, FileLedger.create(tmp_path / "ledger", fleet.identities[0], barrier=True))
    for attempt in (2, 3, 4):
        offer = Round(fleet=fleet, spec=make_spec(fleet, round_id=3, attempt=attempt)).open().requests[ONE]
        refusal = fleet.sessions[ONE].begin(offer, owns=frozenset({BlockId("b")}), entropy=os_entropy)
        assert isinstance(refusal, Refusal)
        assert refusal.reason is Reason.REPLAYED
        process(fleet, FileLedger(tmp_path / "ledger", fleet.identities[0]))  # the barrier outlives a restart
    end = Round(fleet=fleet, spec=make_spec(fleet, round_id=4)).run()
    assert isinstance(end, Summed)
    assert ONE in end.survivors
    other = Round(fleet=fleet, spec=make_spec(fleet, round_id=1, run_id="other")).run()
    assert isinstance(other, Summed)
    assert ONE not in other.survivors, "a run that it first hears of now may be as old"


def test_an_offer_that_is_refused_moves_no_barrier(tmp_path: Path) -> None:
    """Else anybody could have a device sit out whatever he likes, by offers of later rounds that nobody signed."""
    fleet, _ = with_files(tmp_path)
    process(fleet, FileLedger.create(tmp_path / "ledger", fleet.identities[0], barrier=True))
    stranger = make_fleet(5, seed=8)
    forged = Round(fleet=stranger, spec=make_spec(fleet, round_id=9)).open().requests[ONE]
    refusal = fleet.sessions[ONE].begin(forged, owns=frozenset({BlockId("b")}), entropy=os_entropy)
    assert isinstance(refusal, Refusal)
    assert refusal.reason is Reason.BAD_SIGNATURE
    assert FileLedger(tmp_path / "ledger", fleet.identities[0]).mark("run") is None


def test_a_memory_ledger_may_forget_vectors_that_need_no_repeat() -> None:
    fleet = make_fleet(5)
    a = Round(fleet=fleet, spec=make_spec(fleet))
    state = a.reach("mask")
    a.ask(ONE, state.requests[ONE])
    masked = fleet.ledgers[ONE].load("run")
    assert isinstance(masked, Masked)
    keeping, forgetting = MemoryLedger(), MemoryLedger(repeats=False)
    keeping.save("run", masked)
    forgetting.save("run", masked)
    assert keeping.load("run") == masked
    assert forgetting.load("run").reply.vectors == ()


def test_a_ledger_in_memory_keeps_the_mark_of_what_was_answered_last() -> None:
    fleet, ledger = make_fleet(5), MemoryLedger()
    fleet.sessions[ONE] = DeviceSession(
        ledger=ledger, identity=fleet.identities[0], enrolled=fleet.enrolled(ONE), policy=fleet.policy
    )
    assert ledger.mark("run") is None
    for attempt in (1, 2):
        Round(fleet=fleet, spec=make_spec(fleet, attempt=attempt)).reach("share")
        mark = ledger.mark("run")
        assert mark is not None
        assert (mark.round_id, mark.attempt) == (1, attempt)
