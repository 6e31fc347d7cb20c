"""Secure aggregation: sums of vectors that nobody sees one by one (docs/protocol.md).

The coordinator opens a round over a ``RoundSpec`` and moves bytes; devices answer through a ``DeviceSession``. The sum
comes back as ``Summed``, or not at all as ``Aborted``: nothing degrades. How a round goes, in the order to read it:
spec, messages, coordinator, device, unmask.
"""

from fedpeft.ring import SumRange
from fedpeft.secagg.coordinator import close_stage, open_round, receive, reject
from fedpeft.secagg.coordinator_state import Aborted, BlockSum, CoordinatorState, Open, Rejection, Summed
from fedpeft.secagg.device import answer, begin
from fedpeft.secagg.device_mask import Inputs
from fedpeft.secagg.device_reveal import AgreedSum
from fedpeft.secagg.device_state import DeviceState, DeviceStep, HighWaterMark, dump_state, load_state
from fedpeft.secagg.ledger import FileLedger, Ledger, MemoryLedger
from fedpeft.secagg.messages import (
    REPLIES,
    REQUESTS,
    Advertise,
    Agreement,
    ConsistRequest,
    EncryptedShares,
    MaskedInput,
    MaskRequest,
    Reason,
    Refusal,
    Reply,
    Request,
    RevealedShares,
    RevealRequest,
    RoundOffer,
    ShareRequest,
)
from fedpeft.secagg.pending import dump_pending, load_pending
from fedpeft.secagg.policy import DevicePolicy, Directory, Enrolled
from fedpeft.secagg.primitives import IdentityKey
from fedpeft.secagg.session import DeviceSession
from fedpeft.secagg.spec import MIN_COHORT_FLOOR, Mode, Participant, RoundSpec, SummedBlock, check_spec

__all__ = [
    "MIN_COHORT_FLOOR",
    "REPLIES",
    "REQUESTS",
    "Aborted",
    "Advertise",
    "AgreedSum",
    "Agreement",
    "BlockSum",
    "ConsistRequest",
    "CoordinatorState",
    "DevicePolicy",
    "DeviceSession",
    "DeviceState",
    "DeviceStep",
    "Directory",
    "EncryptedShares",
    "Enrolled",
    "FileLedger",
    "HighWaterMark",
    "IdentityKey",
    "Inputs",
    "Ledger",
    "MaskRequest",
    "MaskedInput",
    "MemoryLedger",
    "Mode",
    "Open",
    "Participant",
    "Reason",
    "Refusal",
    "Rejection",
    "Reply",
    "Request",
    "RevealRequest",
    "RevealedShares",
    "RoundOffer",
    "RoundSpec",
    "ShareRequest",
    "SumRange",
    "Summed",
    "SummedBlock",
    "answer",
    "begin",
    "check_spec",
    "close_stage",
    "dump_pending",
    "dump_state",
    "load_pending",
    "load_state",
    "open_round",
    "receive",
    "reject",
]
