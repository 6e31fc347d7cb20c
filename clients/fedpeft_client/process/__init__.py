"""The device's two processes: the agent that speaks to the network, the worker that trains."""
