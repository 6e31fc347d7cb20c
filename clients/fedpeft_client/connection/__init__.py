"""The device's connection to the coordinator's gRPC service: calls, wake-ups, the base model."""
