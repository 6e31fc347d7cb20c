"""What all PEFT methods share: where a model keeps its parts, hooks, blocks, replicas, initial values. Torch."""
