"""What terms hold against, and what a site asks of them."""

from dataclasses import replace

import pytest

from fedpeft.privacy import NoiseTerms
from fedpeft.secagg.policy import colluders_objection
from fedpeft.testing.secagg_fleet import make_fleet, make_spec


@pytest.mark.parametrize("members", [5, 10, 11, 20, 21])
@pytest.mark.parametrize("noise", [None, 0, 1, 2, 5])
def test_terms_hold_against_as_many_colluders_as_the_weaker_of_thresholds_and_noise(
    members: int, noise: int | None
) -> None:
    spec = make_spec(make_fleet(members), corrupt_fraction=0.1)
    assumed = {5: 1, 10: 1, 11: 2, 20: 2, 21: 3}[members]
    if noise is not None:
        terms = NoiseTerms(l2_clip_norm=1.0, noise_multiplier=1.0, colluders=noise, step=2.0**-20)
        spec, assumed = replace(spec, noise=terms), min(assumed, noise)
    for least in range(7):
        objection = colluders_objection(spec, members, least)
        assert (objection is None) is (least <= assumed), least
        if objection is not None:
            assert f"against {least} colluding devices, found {assumed} of {members}" in objection
