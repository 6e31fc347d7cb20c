"""Telling other systems what happened: signed messages to addresses that the operator named."""
