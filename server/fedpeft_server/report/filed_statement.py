"""A run's promise as a document that a data-protection officer can file: for people, for programs, signed.

One document (``StatementDocument``: JSON values, nothing else) is all there is. Its three files are functions of it:

- JSON: the document, the key and the signature;
- text and HTML: the same rendered, the JSON at the end (in HTML in a comment-free ``pre``).

``read_filed`` takes any of them: the signature must be the key's over the document's canonical bytes, and a text or a
page must be, byte for byte, what its document renders to. So a changed figure is noticed in either part.

What it says of a site is what the site states in every round: its epsilon, its steps, and the class of its size, which
is public under privacy by examples or people. It holds no exact count, no metric and nothing of the data.
"""

import html
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from fedpeft.bounded_json import JsonRefused, JsonValue, loads
from fedpeft.config.privacy import Privacy
from fedpeft.errors import IntegrityFailed
from fedpeft.privacy import ExampleStatement, Opinions, Statement
from fedpeft.secagg.primitives import IdentityKey, digest, is_signed
from fedpeft_server.run.privacy_statements import client_statement, engine_lines, stated, warnings_of
from fedpeft_server.run.run_view import RunView

__all__ = ["Filed", "as_html", "as_json", "as_text", "document_of", "file_statement", "read_filed"]

LABEL = "privacy statement"
MAX_BYTES = 4 * 2**20
BEGIN, END = "-----BEGIN FEDPEFT PRIVACY STATEMENT-----", "-----END FEDPEFT PRIVACY STATEMENT-----"
NOBODY = "nobody: this run has no coordinator with a key (a simulation)"
STYLE = (
    "body{font-family:sans-serif;max-width:50em;margin:2em auto}"
    "th{text-align:left;vertical-align:top;padding-right:1em}"
    "pre{font-size:70%;white-space:pre-wrap;word-break:break-all}"
)
KEYS = frozenset({"document", "public_key", "signature"})

Document = Mapping[str, JsonValue]


@dataclass(frozen=True, slots=True, kw_only=True)
class Filed:
    """A document with its signature.

    Args:
        document: what is stated.
        public_key, signature: Ed25519, as hex; empty where nobody signed.
    """

    document: Document
    public_key: str
    signature: str


def document_of(view: RunView, *, signer: str = "") -> Document:
    """What a run has promised, as JSON values.

    Args:
        view: the run.
        signer: "coordinator" or "device"; empty: nobody signs.
    """
    config, manifest = view.config(), view.manifest
    known: dict[str, JsonValue] = {
        "title": "Privacy statement",
        "format": 1,
        "run": manifest.run_id,
        "began": manifest.created,
        "rounds committed": len(view.rounds),
        "base model": manifest.base_digest,
        "adapter": manifest.adapter_digest,
        "configuration": manifest.config_digest,
        "unit": config.privacy.unit,
        "budget": {"epsilon": config.privacy.epsilon, "delta": config.privacy.delta},
        "signed by": f"the {signer}" if signer else NOBODY,
    }
    if config.privacy.unit == "none":
        return known | {"promise": ["no differential privacy; whoever has the adapter may learn from it"]}
    said, statements = _said(view)
    if said is None:
        return known | {"promise": [*warnings_of(view), "nothing has been released"]}
    found = said.opinions if isinstance(said, Statement) else said.opinions()
    return known | {
        "epsilon": _number(found.charged),
        "delta": said.delta,
        "accountants": _accountants(found),
        "promise": [*warnings_of(view), *_lines_of(said, config.privacy), *engine_lines(view)],
        "sites": [_site(name, one) for name, one in sorted(statements.items())],
    }


def _said(view: RunView) -> tuple[Statement | ExampleStatement | None, Mapping[str, ExampleStatement]]:
    if view.config().privacy.unit == "client":
        return client_statement(view), {}
    statements = stated(view)
    return max(statements.values(), key=lambda one: one.opinions().charged, default=None), statements


def _lines_of(said: Statement | ExampleStatement, privacy: Privacy) -> tuple[str, ...]:
    return said.lines() if isinstance(said, Statement) else said.lines(correlated=privacy.noise == "correlated")


def _accountants(found: Opinions) -> list[JsonValue]:
    second: JsonValue = _number(found.prv) if found.prv is not None else f"none: {found.failure or 'nothing to ask'}"
    return [
        {"accountant": f"fedpeft: {found.accountant}", "epsilon": _number(found.ours)},
        {"accountant": "Opacus: PRV, the upper end of its error bound", "epsilon": second},
        {"accountant": "Opacus: Renyi divergence", "epsilon": _number(found.rdp) if found.rdp is not None else "none"},
        {"accountant": "charged: the larger of the first two", "epsilon": _number(found.charged)},
    ]


def _site(name: str, one: ExampleStatement) -> JsonValue:
    return {"site": name, "epsilon": _number(one.opinions().charged), "steps": one.steps, one_unit(one): _sizes(one)}


def one_unit(one: ExampleStatement) -> str:
    """What a site's size counts."""
    return "people" if one.unit == "person" else "examples"


def _sizes(one: ExampleStatement) -> str:
    """To a factor of two, as the sampling rate tells; nothing finer was ever stated."""
    return f"at its sampling rate of {one.sampling_rate:.4g}; how many is public to a factor of two alone"


def _number(value: float) -> JsonValue:
    return value if math.isfinite(value) else "infinite"


def file_statement(document: Document, key: IdentityKey | None) -> Filed:
    """The document, signed."""
    if key is None:
        return Filed(document=document, public_key="", signature="")
    signature = key.sign(digest(LABEL, _canonical(document)))
    return Filed(document=document, public_key=key.public.hex(), signature=signature.hex())


def as_json(filed: Filed) -> bytes:
    """For programs."""
    content = {"document": filed.document, "public_key": filed.public_key, "signature": filed.signature}
    return (json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def as_text(filed: Filed) -> bytes:
    """For people, with the JSON at the end."""
    lines = [str(filed.document.get("title", "")).upper(), ""]
    for name, value in filed.document.items():
        lines += _lines(name, value)
    lines += ["", _signature_line(filed), "", BEGIN, as_json(filed).decode().rstrip("\n"), END, ""]
    return "\n".join(lines).encode()


def as_html(filed: Filed) -> bytes:
    """The same as a page that prints; no script, nothing from elsewhere."""
    rows = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{_cell(value)}</td></tr>\n" for name, value in filed.document.items()
    )
    title = html.escape(f"{filed.document.get('title', '')} {filed.document.get('run', '')}")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
        f"</head><body>\n<h1>{title}</h1>\n<table>\n{rows}</table>\n<p>{html.escape(_signature_line(filed))}</p>\n<pre>\n"
        f"{BEGIN}\n{html.escape(as_json(filed).decode().rstrip(chr(10)))}\n{END}\n</pre></body></html>\n"
    ).encode()


def read_filed(payload: bytes) -> Filed:
    """A statement from any of its files.

    Raises:
        IntegrityFailed: it is none, was changed in either part, or bears a signature that is not its key's. One that
            nobody signed is read; see ``Filed.signature``.
    """
    if len(payload) > MAX_BYTES:
        raise IntegrityFailed(f"Expected a statement of at most {MAX_BYTES} bytes, found {len(payload)}.")
    page, text = payload.startswith(b"<!doctype html>"), payload.decode("utf-8", errors="replace")
    inner = re.search(f"^{BEGIN}\n(.*)\n{END}$", text, re.DOTALL | re.MULTILINE)
    filed = _parsed(html.unescape(inner[1]) if inner and page else inner[1] if inner else text)
    expected = as_html(filed) if page else as_text(filed) if inner else as_json(filed)
    if expected != payload:
        raise IntegrityFailed(
            "Expected a statement as it was written, found one whose readable part and signed part differ: it was "
            "changed. Ask whoever issued it for the file."
        )
    if filed.signature and not _signed(filed):
        raise IntegrityFailed(
            f"Expected a statement as the key {filed.public_key[:16]}... signed it, found another: it was changed. "
            "Ask whoever issued it for the file."
        )
    return filed


def _parsed(text: str) -> Filed:
    try:
        content = loads(text)
    except JsonRefused as error:
        raise IntegrityFailed(f"Expected a privacy statement, found another file: {error}.") from error
    if isinstance(content, dict) and set(content) == KEYS:
        document, key, signature = content["document"], content["public_key"], content["signature"]
        if isinstance(document, dict) and isinstance(key, str) and isinstance(signature, str):
            return Filed(document=_ordered(document), public_key=key, signature=signature)
    raise IntegrityFailed("Expected a privacy statement with document, public_key and signature, found other JSON.")


ORDER = (
    "title", "format", "run", "began", "rounds committed", "base model", "adapter", "configuration", "unit", "budget",
    "signed by", "epsilon", "delta", "accountants", "promise", "sites",
)  # fmt: skip


def _ordered(document: Mapping[str, JsonValue]) -> Document:
    """In the order in which it is shown; the JSON is sorted."""
    return {name: document[name] for name in (*ORDER, *sorted(document.keys() - set(ORDER))) if name in document}


def _signed(filed: Filed) -> bool:
    try:
        public, signature = bytes.fromhex(filed.public_key), bytes.fromhex(filed.signature)
    except ValueError:
        return False
    return is_signed(public, signature, digest(LABEL, _canonical(filed.document)))


def _canonical(document: Document) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _signature_line(filed: Filed) -> str:
    if not filed.signature:
        return "NOT SIGNED: whoever hands this on can have changed it."
    return f"Signed with Ed25519 by the key {filed.public_key}; check with `fedpeft privacy verify FILE`."


def _lines(name: str, value: JsonValue) -> list[str]:
    if isinstance(value, list):
        return [f"{name}:", *(f"  - {_flat(one)}" for one in value)]
    return [f"{name}: {_flat(value)}"]


def _flat(value: JsonValue) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_flat(one)}" for name, one in sorted(value.items()))
    return f"{value:.6g}" if isinstance(value, float) else str(value).replace("\n", " ")


def _cell(value: JsonValue) -> str:
    if isinstance(value, list):
        return "<ul>" + "".join(f"<li>{html.escape(_flat(one))}</li>" for one in value) + "</ul>"
    return html.escape(_flat(value))
