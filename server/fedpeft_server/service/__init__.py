"""What the network reaches: listeners, the Fleet gateway, the gRPC service, limits, metrics."""
