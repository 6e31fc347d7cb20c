"""What a device has, what training costs on it, and which blocks it should train. No torch."""

from fedpeft.catalogue.base_shape import BaseShape, Vectors
from fedpeft.planner.cost import Calibration, Estimate, MeasuredStep, calibrate, estimate
from fedpeft.planner.hardware import REFERENCE, DeviceProfile, available_bytes, probe, this_machine
from fedpeft.planner.plan import CapacityPlan, DeviceLimits, Menu, Rejected, menu_of, plan
from fedpeft.planner.read_shape import shape_of
from fedpeft.planner.workload import Workload, evaluation_batch

__all__ = [
    "REFERENCE",
    "BaseShape",
    "Calibration",
    "CapacityPlan",
    "DeviceLimits",
    "DeviceProfile",
    "Estimate",
    "MeasuredStep",
    "Menu",
    "Rejected",
    "Vectors",
    "Workload",
    "available_bytes",
    "calibrate",
    "estimate",
    "evaluation_batch",
    "menu_of",
    "plan",
    "probe",
    "shape_of",
    "this_machine",
]
