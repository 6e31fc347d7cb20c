"""`fedpeft doctor --role client`: is this device fit to take part?"""

from fedpeft import __version__
from fedpeft.base.store import ArtifactStore
from fedpeft.clock import Clock
from fedpeft.deployment.doctor import CheckResult, answers_tls, check, disk, private
from fedpeft.deployment.window import outside_window
from fedpeft.errors import ConfigInvalid, DeadlineMissed, NotEnrolled
from fedpeft.secagg import FileLedger
from fedpeft_client.connection.grpc_client import Link
from fedpeft_client.connection.proxy import proxy_of
from fedpeft_client.enrolment.join import check_clock
from fedpeft_client.enrolment.keys import certificate_fits
from fedpeft_client.enrolment.membership import certificate_ends
from fedpeft_client.home import DeviceHome
from fedpeft_client.site import Site

__all__ = ["check_device"]

_NEED_BYTES = 1 << 30


def check_device(home: DeviceHome, clock: Clock) -> tuple[CheckResult, ...]:
    """Every check, in the order in which they should be mended; sends one greeting, changes nothing."""

    def enrolment() -> str:
        found = home.enrolment()
        return f"{found.device} of {found.organisation} at {found.host}"

    first = check("enrolment", enrolment)
    rules = check("site.toml", lambda: _rules(home))
    if not first.sound:
        return (first, rules)

    def certificate() -> str:
        try:
            fits = certificate_fits(
                home.device_certificate.read_bytes(),
                key_pem=home.device_key.read_bytes(),
                authority=home.ca_certificate.read_bytes(),
            )
        except OSError as error:
            raise NotEnrolled(
                f"Expected keys in {home.keys}, found {error.strerror}; join again with a new token."
            ) from error
        left = certificate_ends(home) - clock.utc()
        if not fits or left.total_seconds() <= 0:
            found = "expired" if fits else "for another key"
            raise NotEnrolled(
                f"Expected a valid certificate, found one that is {found}; ask for a token and join again."
            )
        return f"valid for {left.days} days; renewed by itself when 10 are left"

    def coordinator() -> str:
        with Link.of_home(home) as link:
            theirs = link.greet().version
        if outside := outside_window(__version__, theirs):
            raise ConfigInvalid(f"Expected a coordinator of this device's series, found that {outside}; update one.")
        return f"answers, fedpeft {theirs}; this device counts"

    def offset() -> str:
        with Link.of_home(home) as link:
            return f"{check_clock(link, clock):+.2f} s from the coordinator's"

    def fleet() -> str:
        found = home.enrolment()
        if trouble := answers_tls(found.host, found.fleet_port, home.ca_certificate, proxy=proxy_of(home, found.host)):
            raise DeadlineMissed(
                f"Expected {found.fleet_url} to answer, found {trouble}; check it, and the firewalls between."
            )
        return f"{found.fleet_url} answers"

    findings = [
        first,
        private((home.device_key, home.identity_seed, home.enrolment_file)),
        check("ledger", lambda: _ledger(home)),
        check("certificate", certificate),
        check("coordinator", coordinator),
    ]
    if findings[-1].sound:
        findings += [check("clock", offset), check("fleet port", fleet)]
    return (*findings, rules, check("bases", lambda: _bases(home)), disk(home.bases(), need_bytes=_NEED_BYTES))


def _bases(home: DeviceHome) -> str:
    """Every byte of every base that is here."""
    found = ArtifactStore(home.bases()).verify()
    named = ", ".join(f"{one.digest[:15]}... ({one.size_bytes / 2**20:.0f} MiB)" for one in found)
    return f"verified: {named}" if found else "none here yet; a run brings its own"


def _ledger(home: DeviceHome) -> str:
    reset = FileLedger(home.ledger, home.identity()).barrier
    return "in order" + ", reset: sits out the first round of each run that it hears of" * reset


def _rules(home: DeviceHome) -> str:
    from pathlib import Path

    site = Site.load(home.site)
    if not Path(site.data.source).exists():
        raise ConfigInvalid(f"Expected examples in {site.data.source}, found nothing; set data.source in {home.site}.")
    return f"{home.site}, examples in {site.data.source}"
