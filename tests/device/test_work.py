"""Counts against the real adapter and the real autograd: blocks, parameters, kept floats."""
