"""The OpenAPI 3.1 document of the API, made of the table of operations."""

import fedpeft
from fedpeft_server.admin.asked import Field
from fedpeft_server.admin.routes import NAME, OPERATIONS, Operation

__all__ = ["document"]

_FAULTS = {
    400: "The request cannot be read",
    401: "No good access token",
    403: "The token's role is not enough",
    404: "There is no such thing",
    405: "Another method",
    408: "The body did not come in time",
    409: "Something is missing on the coordinator",
    411: "A body of unknown length",
    413: "The body is too large",
    415: "The body is not JSON",
    422: "Something in the request is wrong; the text says what",
    429: "Too many requests",
    503: "The coordinator's home cannot be read or written",
}
_REFUSED = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "string"}, "exit_code": {"type": "integer"}},
}


def document() -> dict[str, object]:
    """The document."""
    paths: dict[str, dict[str, object]] = {}
    for operation in OPERATIONS:
        if operation.role is not None:
            paths.setdefault(operation.path, {})[operation.method.lower()] = _described(operation)
    events = {"description": "The status whenever it changed", "content": {"text/event-stream": {}}}
    paths["/v1/events"] = {
        "get": {
            "operationId": "events",
            "summary": "The coordinator, its runs and the running round, as server-sent events.",
            "description": "Role: viewer",
            "responses": {"200": events, **_faults()},
        }
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "fedpeft coordinator", "version": fedpeft.__version__},
        "security": [{"token": []}],
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "paths": paths,
    }


def _described(operation: Operation) -> dict[str, object]:
    kind = "application/octet-stream" if operation.name in ("runs.file", "runs.report") else "application/json"
    made: dict[str, object] = {
        "operationId": operation.name,
        "summary": operation.about,
        "description": f"Role: {operation.role.word if operation.role else ''}",
        "responses": {str(operation.status): {"description": "Done", "content": {kind: {}}}, **_faults()},
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string", "pattern": f"^{NAME}$"}}
            for name in operation.parts
        ],
    }
    if operation.method == "GET":
        parameters = made["parameters"]
        assert isinstance(parameters, list)  # noqa: S101
        parameters += [
            {"name": name, "in": "query", "required": one.required, "schema": _schema(one)}
            for name, one in operation.fields.items()
        ]
        return made
    schema = {
        "type": "object",
        "additionalProperties": False,
        "required": [name for name, one in operation.fields.items() if one.required],
        "properties": {name: _schema(one) for name, one in operation.fields.items()},
    }
    made["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return made


def _schema(one: Field) -> dict[str, object]:
    made: dict[str, object] = {"type": one.kind} | ({"description": one.about} if one.about else {})
    if one.kind == "integer":
        made |= {"minimum": one.least, "maximum": one.most}
    if one.kind == "string":
        made |= {"minLength": one.least, "maxLength": one.most}
        made |= {"pattern": f"^{one.pattern}$"} if one.pattern else {}
        made |= {"enum": list(one.choices)} if one.choices else {}
    return made


def _faults() -> dict[str, object]:
    return {
        str(status): {"description": text, "content": {"application/json": {"schema": _REFUSED}}}
        for status, text in _FAULTS.items()
    }
