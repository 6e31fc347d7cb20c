"""What each method adds to a base: blocks, activations kept for the backward pass, operations.

One function a method, from the base's shape and the run's adapter alone. Counts are exact (tests compare
them with the adapter that ``fedpeft.methods.attach`` makes); what autograd keeps follows from which tensors
require gradients: a method that is applied and not trained keeps nothing.
"""

from fedpeft.device.counts import Footprint

__all__ = ["FOOTPRINTS", "Footprint", "adapted_layers", "layers_of", "present_methods", "spec_of"]
