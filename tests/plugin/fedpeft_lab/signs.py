"""An aggregation rule, without its function: what it needs of devices and of the sum."""

from fedpeft.config.rules import RulePlugin

RULE = RulePlugin(step="fedpeft_lab.signs_step:step", source="Bernstein 2018", elementwise=True)
"""``elementwise``: the same bits on any machine, so each device computes the next state too, and refuses another."""
