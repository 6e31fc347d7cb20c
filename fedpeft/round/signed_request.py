"""Reading a fit request: what the coordinator signed, and the texts and records that the signature covers.

The first thing that happens to a fit request on a device, in each of its processes: before a base is fetched, a plan
is built or an example is read. Nothing of a request is used that does not come out of here or of ``accept_work``.
"""

from dataclasses import dataclass

from fedpeft import secagg
from fedpeft.errors import SpecMismatch
from fedpeft.round.messages import FitRequest, WorkTerms
from fedpeft.round.plan import LearningPlan
from fedpeft.round.work import plan_digest, work_digest
from fedpeft.secagg.offer import open_spec, open_terms, spec_of
from fedpeft.secagg.primitives import is_signed
from fedpeft.secagg.transcript import offer_context
from fedpeft.wire import decode

__all__ = ["SignedRequest", "covered_by", "read_signed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedRequest:
    """What the signed terms of a round cover.

    Args:
        terms: of its secure sum.
        plan: what the run learns.
        work: what the round asks of every device.
    """

    terms: secagg.RoundSpec
    plan: LearningPlan
    work: WorkTerms


def covered_by(terms: secagg.RoundSpec, request: FitRequest) -> SignedRequest:
    """The plan and the work of a request whose digests are in these terms.

    Args:
        terms: signed by the coordinator; the caller has checked that.

    Raises:
        SpecMismatch: they are others, another run's, or another spelling of them.
        WireError: the work is none.
    """
    if work_digest(request.work) != terms.work:
        raise SpecMismatch("Expected the work whose digest is in the signed terms, found other work.")
    work = decode(request.work, WorkTerms)
    if plan_digest(request.learning) != work.plan:
        raise SpecMismatch("Expected the plan whose digest is in the signed terms, found another.")
    plan = LearningPlan.from_json(request.learning)
    if terms.run_id != plan.run_id:
        raise SpecMismatch(f"Expected the plan of run {terms.run_id}, as its signed terms say; found {plan.run_id}.")
    return SignedRequest(terms=terms, plan=plan, work=work)


def read_signed(coordinator_key: bytes, request: FitRequest) -> SignedRequest:
    """What a request's terms cover, once its signature and digests are checked; for a process that does nothing else.

    The terms are without participants where the request came without its roster: the process that takes part has it.

    Args:
        coordinator_key: Ed25519, from enrolment.

    Raises:
        SpecMismatch: the terms are not signed by this coordinator, or do not cover the plan.
    """
    offer = decode(request.offer, secagg.RoundOffer)
    if not is_signed(coordinator_key, offer.signature, offer_context(offer)):
        raise SpecMismatch("Expected terms signed by the enrolled coordinator, found another key; nothing was fetched.")
    terms = open_spec(offer) if offer.roster else spec_of(open_terms(offer.spec))
    return covered_by(terms, request)
