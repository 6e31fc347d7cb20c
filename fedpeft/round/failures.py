"""Which of a device's troubles the coordinator hears of, and in what words."""

from fedpeft.errors import (
    BudgetExhausted,
    ConfigInvalid,
    DataInvalid,
    FedpeftError,
    IntegrityFailed,
    PolicyRefused,
    ResourceMissing,
)
from fedpeft.round.local import NotFinite
from fedpeft.round.messages import Failure, FailureReason

__all__ = ["failure_of"]


def failure_of(error: FedpeftError | MemoryError) -> Failure:
    """Why this device takes no part, in words that say nothing about its examples.

    Raises:
        FedpeftError: as it came, when no reason stands for it.
    """
    match error:
        case NotFinite():
            return Failure(reason=FailureReason.NOT_FINITE, detail=str(error))
        case BudgetExhausted():
            return Failure(reason=FailureReason.BUDGET_SPENT, detail=str(error))
        case PolicyRefused():
            return Failure(reason=FailureReason.POLICY_REFUSED, detail=str(error))
        case ResourceMissing():
            return Failure(reason=FailureReason.BASE_MISSING, detail=str(error))
        case IntegrityFailed() | ConfigInvalid():
            return Failure(reason=FailureReason.PLAN_REFUSED, detail=str(error))
        case DataInvalid():  # its text may quote examples
            detail = "the examples of this device do not fit the task; run `fedpeft data check` there"
            return Failure(reason=FailureReason.NO_EXAMPLES, detail=detail)
        case MemoryError():
            return Failure(reason=FailureReason.OUT_OF_MEMORY, detail="training ran out of memory on this device")
        case _:
            raise error
