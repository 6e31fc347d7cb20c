"""What all tests share: how Hypothesis chooses its examples."""

from hypothesis import Phase, settings

# `make test` draws the same examples every time, so that a change is judged by the change. New ones are looked for by
# `make explore`, where a failure is a find and gets an @example of its own.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("explore", max_examples=1000, deadline=None)
# `make mutate` wants to know whether a test fails, not the smallest example.
settings.register_profile(
    "mutation", derandomize=True, deadline=None, phases=(Phase.explicit, Phase.generate), report_multiple_bugs=False
)
settings.load_profile("repeatable")
