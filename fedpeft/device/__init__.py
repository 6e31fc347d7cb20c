"""What a device has, what training costs on it, and which blocks it should train. No torch."""

from fedpeft.device.catalogue import CATALOGUE, MethodRow
from fedpeft.device.cost import Calibration, Estimate, MeasuredStep, calibrate, estimate
from fedpeft.device.plan import Limits, Menu, Plan, Rejected, menu_of, plan
from fedpeft.device.profile import REFERENCE, DeviceProfile, available_bytes, probe
from fedpeft.device.shape import BaseShape, shape_of
from fedpeft.device.work import Workload, evaluation_batch

__all__ = [
    "CATALOGUE",
    "REFERENCE",
    "BaseShape",
    "Calibration",
    "DeviceProfile",
    "Estimate",
    "Limits",
    "MeasuredStep",
    "Menu",
    "MethodRow",
    "Plan",
    "Rejected",
    "Workload",
    "available_bytes",
    "calibrate",
    "estimate",
    "evaluation_batch",
    "menu_of",
    "plan",
    "probe",
    "shape_of",
]
