"""How much memory and time training takes on a device, before it is tried.

Memory (bytes; T = tokens of a micro-batch, or of the batch; fitted to this training loop):

    process + base + adapter + workspace + max(training, evaluation)
    training   = 4 T (heap backbone + methods + 3 I + 4 H) + chunk of logits + unpacked
    evaluation = 4 T (3 I + 4 H) + 2 logits + unpacked

A language model's loss makes its logits in chunks of ``LOSS_CHUNK_BYTES`` (``fedpeft.tuning.token_loss``).
``unpacked`` is the largest float32 weight that a quantized base makes on the fly. ``backbone`` is what autograd
keeps of the adapted layers in floats a token, counted when the base was built (``fedpeft.base.kept_floats``); where it
could not be, 6 H + I in a BERT-like layer, 4 H + 2 kv + 3 I in a Llama-like
one (exact: tests count it with ``saved_tensors_hooks``). ``heap`` is glibc's, which holds on to freed pieces: 2.1
for BERT-like layers (it was 1.6 to 2.6), 1.65 for the larger tensors of Llama-like ones, 1 with checkpointing, which
gives them back; fitted to the configurations of ``benchmarks/planner.py`` and ``benchmarks/methods.py``. Time:
operations over the measured GEMM rate, bytes moved over the measured bandwidth, and a fixed cost a layer. A measured
step replaces the constants (``calibrate``). Stated errors: ``MEMORY_ERROR``, ``TIME_ERROR``; the benchmarks hold them.
"""

from dataclasses import dataclass

from fedpeft.catalogue.base_shape import BaseShape
from fedpeft.families import family_named
from fedpeft.planner.hardware import DeviceProfile
from fedpeft.planner.placement import spec_of
from fedpeft.planner.workload import (
    Workload,
    evaluation_batch,
    forward_share,
    kept_floats,
    passes_of,
    step_flops,
    tokens_of,
    trained_blocks,
)
from fedpeft.ring import RingParams

__all__ = [
    "MEMORY_ERROR",
    "TIME_ERROR",
    "UNCALIBRATED",
    "Calibration",
    "Estimate",
    "MeasuredStep",
    "calibrate",
    "estimate",
]

MEMORY_ERROR = 0.15
"""Stated relative error of ``Estimate.peak_bytes``, with or without calibration."""

TIME_ERROR = 0.2
"""Stated relative error of ``Estimate.step_s`` after a calibration on the same machine and base."""

MIB = 2**20
LOSS_CHUNK_BYTES = 16 * MIB  # tuning.token_loss.CHUNK_BYTES; a test holds the two together
HEAD_COPIES = 1.5  # of an output matrix that is unpacked chunk after chunk: fitted, as what follows
BEYOND_HEAP = 1.25  # fitted to GPT-2 and DeBERTa (benchmarks/planner.py --architectures)
LAYER_S = 2.5e-3  # dispatch of one layer's operators in one pass, on a core of REFERENCE_RATE
REFERENCE_RATE = 50e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What a device's own measurement says, or the constants of the development machine.

    Args:
        process_bytes: interpreter and libraries with no base loaded.
        activation_factor: measured over predicted growth in memory during a step.
        time_factor: measured over predicted time of a step.
        measured: whether any of it was measured here.
    """

    process_bytes: int = 400 * MIB
    activation_factor: float = 1.0
    time_factor: float = 1.0
    measured: bool = False


UNCALIBRATED = Calibration()


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredStep:
    """One real training step on this device (``fedpeft_client.training.measure_step``).

    Args:
        loaded_bytes: resident memory with base and adapter, before the step.
        peak_bytes: highest resident memory during it.
        step_s: CPU seconds of a step after the first.
    """

    loaded_bytes: int
    peak_bytes: int
    step_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Predicted cost of one workload.

    Args:
        process_bytes, base_bytes, adapter_bytes, activation_bytes: parts of the peak.
        cache_bytes: on the disk: activations below the adapted layers.
        step_s: one training step on one core.
        round_s: a round's evaluation and training.
        trained: coordinates that are trained.
        bytes_up, bytes_down: a round's, with the secure sum's overhead.
    """

    process_bytes: int
    base_bytes: int
    adapter_bytes: int
    activation_bytes: int
    cache_bytes: int
    step_s: float
    round_s: float
    trained: int
    bytes_up: int
    bytes_down: int

    @property
    def peak_bytes(self) -> int:
        """Highest resident memory of the process."""
        return self.process_bytes + self.base_bytes + self.adapter_bytes + self.activation_bytes


def estimate(
    shape: BaseShape,
    workload: Workload,
    profile: DeviceProfile,
    calibration: Calibration = UNCALIBRATED,
    *,
    bits: int = 32,
    cohort: int = 8,
) -> Estimate:
    """The predicted cost of ``workload`` on ``profile``.

    Args:
        bits: of the secure sum's ring.
        cohort: devices in a round.
    """
    spec = spec_of(shape, workload.adapter, classes=workload.classes)
    chosen = trained_blocks(shape, workload)
    applied = sum(block.size for block in spec.blocks)
    trained = [spec[block_id].size for block_id in chosen]
    changing = [block.size for block in spec.blocks if block.trainable]
    vocabulary = 0 if workload.classes else shape.vocabulary
    evaluated = min(evaluation_batch(length=workload.length, vocabulary=vocabulary), workload.eval_examples)
    logits = 4 * evaluated * tokens_of(shape, workload) * vocabulary
    activations = family_named(shape.family).workspace_bytes + max(
        _training_bytes(shape, workload), _forward_bytes(shape, workload, evaluated) + 2 * logits
    )
    step = _step_s(shape, workload, profile) * calibration.time_factor
    passes = workload.eval_examples / max(1, workload.batch_size) * forward_share(shape, workload)
    ring = RingParams(bits=bits, addends=max(2, cohort))
    peers = max(2, cohort)
    return Estimate(
        process_bytes=calibration.process_bytes,
        base_bytes=shape.dense_bytes if workload.residency == "dense" else shape.packed_bytes,
        # Values, gradient and two moments; twice more as flat vectors for the secure sum.
        adapter_bytes=4 * applied + (12 + 8) * sum(trained),
        activation_bytes=round(activations * calibration.activation_factor),
        cache_bytes=4 * workload.cached_examples * workload.length * shape.hidden,
        step_s=step,
        round_s=step * (workload.local_steps + passes),
        trained=sum(trained),
        # The protocol's own messages, measured on the demo at six devices: keys, shares, roster.
        bytes_up=sum(ring.size_bytes(size) for size in trained) + 1100 + 250 * peers,
        bytes_down=4 * sum(changing) + 1100 * peers,
    )


def calibrate(shape: BaseShape, workload: Workload, profile: DeviceProfile, measured: MeasuredStep) -> Calibration:
    """What one measured step of ``workload`` teaches about this device.

    What the heap holds on to differs between configurations, so one of them moves the activations half the way
    (a square root) and by no more than a fifth; a disturbed clock moves the time tenfold at most.
    """
    known = estimate(shape, workload, profile)
    process = measured.loaded_bytes - known.base_bytes
    grown = measured.peak_bytes - measured.loaded_bytes
    return Calibration(
        process_bytes=max(64 * MIB, process),
        activation_factor=min(1.5, max(2 / 3, max(0, grown) / known.activation_bytes)) ** 0.5,
        time_factor=_within_ten(measured.step_s / known.step_s),
        measured=True,
    )


def _training_bytes(shape: BaseShape, workload: Workload) -> int:
    backbone, methods = kept_floats(shape, workload)
    heap = 1.0 if workload.checkpointing else _heap(shape, tokens_of(shape, workload))
    kept = 4 * workload.at_once * tokens_of(shape, workload) * (heap * backbone + methods)
    logits = 0 if workload.classes else 4 * workload.at_once * tokens_of(shape, workload) * shape.vocabulary
    loss = min(LOSS_CHUNK_BYTES, logits)
    return round(kept) + _forward_bytes(shape, workload, workload.at_once) + loss


def _heap(shape: BaseShape, length: int) -> float:
    """What glibc holds on to, over what autograd keeps: the family's, and less of what a layer keeps beyond that."""
    share = min(1.0, shape.formula_floats / max(1.0, shape.kept_floats(length)))
    return share * family_named(shape.family).heap + (1 - share) * BEYOND_HEAP


def _forward_bytes(shape: BaseShape, workload: Workload, batch_size: int) -> int:
    """The widest moment of a pass over ``batch_size`` examples, logits apart."""
    tokens = batch_size * tokens_of(shape, workload)
    largest = shape.inner * shape.hidden
    if not workload.classes:
        largest = max(largest, round(HEAD_COPIES * shape.vocabulary * shape.hidden))
    unpacked = largest if workload.residency == "quantized" else 0
    return 4 * (tokens * (3 * shape.inner + 4 * shape.hidden) + unpacked)


def _step_s(shape: BaseShape, workload: Workload, profile: DeviceProfile) -> float:
    tokens, passes = workload.batch_size * tokens_of(shape, workload), sum(passes_of(shape, workload))
    moved = 4.0 * tokens * passes * (2 * shape.inner + 8 * shape.hidden)
    if workload.residency == "quantized":  # a weight is read packed, written as float32, and read again
        moved += 10.0 * passes * shape.matrix_parameters
        moved += 0 if workload.classes else 20.0 * shape.vocabulary * shape.hidden
    overhead = LAYER_S * passes * REFERENCE_RATE / profile.gemm_rate
    operations = tokens * sum(step_flops(shape, workload))
    return operations / profile.gemm_rate + moved / profile.bandwidth + overhead


def _within_ten(factor: float) -> float:
    return min(10.0, max(0.1, factor))
