"""What several releases cost together, of whichever unit: the one place that turns a ledger into an epsilon."""

from collections import Counter
from collections.abc import Iterable

from fedpeft.privacy.accountant import Release, epsilon
from fedpeft.privacy.sampled_gaussian import SampledRelease, sampled_epsilon

__all__ = ["Charge", "total_epsilon"]

Charge = Release | SampledRelease
"""What a ledger may hold: a noisy sum over clients, or a device's steps of DP-SGD."""


def total_epsilon(charges: Iterable[Charge], delta: float) -> float:
    """Epsilon at ``delta`` of all these releases together.

    Hiding a client hides each of its examples, so both kinds in one ledger add up as a promise for one example,
    with half of delta each.
    """
    charges = list(charges)
    clients = Counter(charge for charge in charges if isinstance(charge, Release))
    examples = Counter(charge for charge in charges if isinstance(charge, SampledRelease))
    if clients and examples:
        return epsilon(clients.items(), delta / 2) + sampled_epsilon(examples.items(), delta / 2)
    return epsilon(clients.items(), delta) if clients else sampled_epsilon(examples.items(), delta)
