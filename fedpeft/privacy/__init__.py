"""Differential privacy: noise inside the secure sum, accountants, ledger. numpy only; no network, no torch of its own.

In order: ``clip`` a client's whole contribution, put it on the grid with this device's share of discrete Gaussian
noise (``noisy_words``), mask and sum it (``fedpeft.secagg``), ``decode_sum``. ``size_mechanism`` says how much
noise, ``epsilon`` and ``calibrate`` what it is worth, ``PrivacyLedger`` what is left of it. ``opinions`` asks
Opacus's accountants as well; the larger counts.
"""

from fedpeft.privacy.accountant import ACCOUNTANT, Budget, Release, calibrate, epsilon
from fedpeft.privacy.adaptive import CLIP_BIT, bit_noise, bit_vector, bit_weight, next_clip_norm
from fedpeft.privacy.audit import AuditResult, audit_clients
from fedpeft.privacy.clipping import Clipped, clip, l2_norm, rounding_allowance
from fedpeft.privacy.composition import Charge, Protected, total_epsilon
from fedpeft.privacy.correlated import BANDS, coefficients, column_norm, root_mean_square, turns
from fedpeft.privacy.discrete_gaussian import discrete_gaussian
from fedpeft.privacy.ledger import LedgerEntry, PrivacyLedger, read_ledger
from fedpeft.privacy.mechanism import Mechanism, NoiseTerms, decode_sum, noisy_words, size_mechanism
from fedpeft.privacy.noise_stream import CorrelatedNoise, NoiseStream
from fedpeft.privacy.noised_metrics import (
    LOSS_LIMIT,
    METRIC_LANES,
    NOISED_METRICS,
    NoisedMetrics,
    metric_lanes,
    metric_noise,
    metric_weight,
    read_lanes,
)
from fedpeft.privacy.planning import SIZES, expected_noise, signal_to_noise, step_signal_to_noise
from fedpeft.privacy.sampled_gaussian import SampledRelease, calibrate_sampled, sampled_epsilon
from fedpeft.privacy.second_opinion import Opinions, calibrate_by_both, exceeds, opinions
from fedpeft.privacy.statement import ExampleStatement, Statement

__all__ = [
    "ACCOUNTANT",
    "BANDS",
    "CLIP_BIT",
    "LOSS_LIMIT",
    "METRIC_LANES",
    "NOISED_METRICS",
    "SIZES",
    "AuditResult",
    "Budget",
    "Charge",
    "Clipped",
    "CorrelatedNoise",
    "ExampleStatement",
    "LedgerEntry",
    "Mechanism",
    "NoiseStream",
    "NoiseTerms",
    "NoisedMetrics",
    "Opinions",
    "PrivacyLedger",
    "Protected",
    "Release",
    "SampledRelease",
    "Statement",
    "audit_clients",
    "bit_noise",
    "bit_vector",
    "bit_weight",
    "calibrate",
    "calibrate_by_both",
    "calibrate_sampled",
    "clip",
    "coefficients",
    "column_norm",
    "decode_sum",
    "discrete_gaussian",
    "epsilon",
    "exceeds",
    "expected_noise",
    "l2_norm",
    "metric_lanes",
    "metric_noise",
    "metric_weight",
    "next_clip_norm",
    "noisy_words",
    "opinions",
    "read_lanes",
    "read_ledger",
    "root_mean_square",
    "rounding_allowance",
    "sampled_epsilon",
    "signal_to_noise",
    "size_mechanism",
    "step_signal_to_noise",
    "total_epsilon",
    "turns",
]
