"""Numbers in Prometheus' text format."""

from fedpeft_server.service.prometheus import Meters


def test_counters_add_gauges_replace_and_both_are_named_by_kind() -> None:
    meters = Meters()
    meters.count("rounds_total")
    meters.count("rounds_total", 2)
    meters.gauge("devices", 5)
    meters.gauge("devices", 3)
    assert meters.text() == (
        "# TYPE fedpeft_devices gauge\nfedpeft_devices 3\n# TYPE fedpeft_rounds_total counter\nfedpeft_rounds_total 3\n"
    )


def test_a_label_from_outside_cannot_end_its_line() -> None:
    meters = Meters()
    meters.gauge("devices", 1, name='a"} 9\nevil 1')
    assert meters.text().splitlines()[1] == 'fedpeft_devices{name="a\\"} 9\\nevil 1"} 1'
