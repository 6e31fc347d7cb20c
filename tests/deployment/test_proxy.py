"""Which proxy is meant, and what of it shows."""

import pytest

from fedpeft.deployment.proxy import Proxy, proxy_for
from fedpeft.errors import ConfigInvalid

FIRST, SECOND = "http://first:1", "http://second:2"


@pytest.mark.parametrize(
    ("environment", "configured", "expected"),
    [
        ({}, "", None),
        ({"https_proxy": FIRST}, "", FIRST),
        ({"HTTPS_PROXY": FIRST}, "", FIRST),
        ({"HTTPS_PROXY": SECOND, "https_proxy": FIRST}, "", FIRST),
        ({"ALL_PROXY": SECOND}, "", SECOND),
        ({"ALL_PROXY": SECOND, "HTTPS_PROXY": FIRST}, "", FIRST),
        ({"http_proxy": FIRST}, "", None),
        ({"https_proxy": ""}, "", None),
        ({"https_proxy": FIRST}, "off", None),
        ({"https_proxy": FIRST}, SECOND, SECOND),
        ({"https_proxy": FIRST, "no_proxy": "fed.example"}, "", None),
        ({"https_proxy": FIRST, "NO_PROXY": ".example"}, "", None),
        ({"https_proxy": FIRST, "no_proxy": "*"}, SECOND, None),
        ({"https_proxy": FIRST, "no_proxy": "other.example"}, "", FIRST),
    ],
)
def test_the_site_is_asked_before_the_environment_and_exceptions_always_count(
    environment: dict[str, str], configured: str, expected: str | None
) -> None:
    found = proxy_for("fed.example", configured=configured, environment=environment)
    assert (None if found is None else str(found)) == expected


@pytest.mark.parametrize(
    "url",
    ["https://proxy:1", "socks5://proxy:1", "http://", "http://proxy:port", "http://pro xy:1", "http://a%0d%0ab:1"],
)
def test_an_address_of_another_kind_is_refused_without_being_quoted(url: str) -> None:
    with pytest.raises(ConfigInvalid, match=r"site\.toml: network\.proxy") as refused:
        proxy_for("fed.example", configured=url.replace("//", "//me:hidden@"), environment={})
    assert "hidden" not in str(refused.value)


def test_credentials_show_in_no_text_of_a_proxy_but_the_one_for_libraries() -> None:
    proxy = Proxy.parse("http://me:a%40b%3Ac@proxy:8080", where="here")
    assert (proxy.user, proxy.password) == ("me", "a@b:c")
    assert "a@b" not in f"{proxy}{proxy!r}"
    assert Proxy.parse(proxy.with_credentials(), where="here") == proxy
    assert str(Proxy.parse("[::1]:8080", where="here")) == "http://[::1]:8080"
