"""What an application to join must hold before anybody decides about it."""

import re

from fedpeft.deployment.ceremony import vouches
from fedpeft.deployment.messages import Application
from fedpeft.errors import IntegrityFailed
from fedpeft.planner import DeviceProfile

__all__ = ["objection_to"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_ORGANISATION = re.compile(r"[A-Za-z0-9][A-Za-z0-9 .,&()_-]{0,62}")
_PROFILE_MAX = 4096


def objection_to(application: Application, fingerprint: bytes) -> str:
    """What is wrong with an application to the authority with this fingerprint, in words; empty if nothing is."""
    if application.ca_fingerprint != fingerprint:
        return "Expected an application to this coordinator, found the pin of another."
    if not _NAME.fullmatch(application.device):
        return f"Expected a name of letters, digits and ._- (63 at most), found {application.device[:80]!r}."
    if application.organisation and not _ORGANISATION.fullmatch(application.organisation):
        return f"Expected an organisation's name (63 letters at most), found {application.organisation[:80]!r}."
    if not vouches(application):
        return "Expected the identity's signature over the application, found another."
    try:
        if len(application.profile) > _PROFILE_MAX:
            raise IntegrityFailed(f"{len(application.profile)} characters")
        DeviceProfile.from_json(application.profile)
    except IntegrityFailed as error:
        return f"Expected a hardware profile, found {error}."
    return ""
