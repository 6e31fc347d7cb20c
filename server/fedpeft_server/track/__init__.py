"""Experiment trackers: each is told of every committed round, in the numbers of metrics.jsonl."""

from fedpeft_server.track.tracking import Tracking, expect_trackers

__all__ = ["Tracking", "expect_trackers"]
