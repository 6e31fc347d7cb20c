"""What a device trains and with what: the model in memory, examples, capacity, the step."""
