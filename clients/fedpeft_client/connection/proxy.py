"""Which proxy stands between a device and its coordinator: by its site.toml, else by the environment."""

from fedpeft.deployment.proxy import Proxy, proxy_for
from fedpeft.errors import ConfigInvalid
from fedpeft.files import expanded, read_text
from fedpeft_client.home import DeviceHome
from fedpeft_client.site import Site

__all__ = ["proxy_of"]


def proxy_of(home: DeviceHome, host: str) -> Proxy | None:
    """The proxy for a host; None where there is none.

    Args:
        home: whose site.toml counts, if there is one: a device that joins may have none yet.
        host: the coordinator's.

    Raises:
        ConfigInvalid: site.toml is wrong, or names a proxy or a file of credentials that cannot be used.
    """
    if not home.site.is_file():
        return proxy_for(host)
    network = Site.load(home.site).network
    credentials = ""
    if network.proxy_auth_file:
        try:
            credentials = read_text(expanded(network.proxy_auth_file)).strip()
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise ConfigInvalid(
                f"Expected USER:PASSWORD in {network.proxy_auth_file} (network.proxy_auth_file), found {reason}."
            ) from error
    return proxy_for(host, configured=network.proxy, credentials=credentials)
