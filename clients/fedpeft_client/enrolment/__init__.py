"""The device's membership: its keys, joining, renewal, and the devices that it has met."""
