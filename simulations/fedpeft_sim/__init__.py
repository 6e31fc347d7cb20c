"""Many clients on one machine, through the same round code as the deployment."""
