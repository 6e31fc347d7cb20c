"""Small changes to a module's source, each of which some test should notice.

A mutant is one changed node of a module's syntax tree. What is never changed: messages (``raise ...`` and what stands
in f-strings, logs, text constants), annotations, decorators, documentation, ``__all__``, types, and
``zip(strict=...)``, a guard against a fault that is elsewhere.
"""

import ast
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["MODULE", "Mutant", "first_line", "function_digests", "functions_of", "mutants_of", "mutated"]

MODULE = "<module>"
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_COMPARE = {
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE), ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.In: (ast.NotIn,), ast.NotIn: (ast.In,),
    ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,),
}  # fmt: skip
_BINARY = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Add,
    ast.Pow: ast.Mult, ast.LShift: ast.RShift, ast.RShift: ast.LShift, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitOr, ast.MatMult: ast.Mult,
}  # fmt: skip
_CALLS = {"min": "max", "max": "min", "any": "all", "all": "any", "sorted": "list", "ceil": "floor", "floor": "ceil"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One change.

    Args:
        key: file, function, what stands there and what takes its place; stable as long as the function is.
        path: of the module, relative to the repository.
        function: dotted name of the outermost function, with its class; ``<module>`` for what runs on import.
        line: where, from 1.
        offset: the line, from the function's first.
        node: which node of the tree, in the order of ``ast.walk``.
        choice: which of the changes to that node.
        digest: of the function's source, or of the module's for what runs on import.
    """

    key: str
    path: str
    function: str
    line: int
    offset: int
    node: int
    choice: int
    digest: str = field(repr=False)

    @property
    def package(self) -> str:
        """Of ``fedpeft``, that its module is in."""
        return Path(self.path).parts[1]

    @property
    def own_tests(self) -> str:
        """The test file of its module, if there is one."""
        return f"tests/{self.package}/test_{Path(self.path).name}"


def mutants_of(root: Path, path: str) -> list[Mutant]:
    """All mutants of one module, in the order of its text."""
    source = (root / path).read_text()
    tree = ast.parse(source)
    numbers = {id(node): number for number, node in enumerate(ast.walk(tree))}
    digests = function_digests(source)
    seen: dict[str, int] = {}
    found = []
    for node, function, start in _sites(tree.body, "", None):
        for choice, other in enumerate(_changes(node)):
            if function == MODULE and isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
                continue  # A | B is a type there
            key = f"{path}::{function}: {_text(node)} -> {_text(other)}"
            seen[key] = seen.get(key, 0) + 1
            found.append(
                Mutant(
                    key=key + (f" #{seen[key]}" if seen[key] > 1 else ""),
                    path=path,
                    function=function,
                    line=_line(node),
                    offset=_line(node) - start,
                    node=numbers[id(node)],
                    choice=choice,
                    digest=digests[function],
                )
            )
    return found


def mutated(source: str, mutant: Mutant) -> ast.Module:
    """The module's tree with the mutant in it."""
    tree = ast.parse(source)
    node = list(ast.walk(tree))[mutant.node]
    other = _changes(node)[mutant.choice]
    return ast.fix_missing_locations(_Replace(node, ast.copy_location(other, node)).visit(tree))


def function_digests(source: str) -> dict[str, str]:
    """Of each outermost function, by dotted name, and of the whole module: a digest of its text."""
    lines = source.splitlines()
    found = {MODULE: _digest(source)}
    for name, first, last in functions_of(ast.parse(source).body, ""):
        found[name] = _digest("\n".join(lines[first - 1 : last]))
    return found


def functions_of(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, int, int]]:
    """Each outermost function: dotted name, first line with decorators, last line."""
    for node in body:
        if isinstance(node, _FUNCTIONS):
            yield prefix + node.name, first_line(node), node.end_lineno or node.lineno
        elif isinstance(node, ast.ClassDef):
            yield from functions_of(node.body, f"{prefix}{node.name}.")


def first_line(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Where a function begins, its decorators included: as its code object has it."""
    return min([node.lineno, *(one.lineno for one in node.decorator_list)])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class _Replace(ast.NodeTransformer):
    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self._old, self._new = old, new

    def visit(self, node: ast.AST) -> ast.AST:
        return self._new if node is self._old else self.generic_visit(node)


def _sites(body: list[ast.stmt], prefix: str, start: int | None) -> Iterator[tuple[ast.AST, str, int]]:
    """Each node that may change, with the name and the first line of its function."""
    for node in body:
        if isinstance(node, _FUNCTIONS):
            for default in (*node.args.defaults, *(one for one in node.args.kw_defaults if one)):
                yield from ((one, MODULE, 1) for one in _within(default))  # evaluated on import
            name = prefix + node.name
            for statement in node.body:
                yield from ((one, name, first_line(node)) for one in _within(statement))
        elif isinstance(node, ast.ClassDef):
            yield from _sites(node.body, f"{prefix}{node.name}.", start)
        elif not _is_typing(node):
            yield from ((one, MODULE, 1) for one in _within(node))


def _is_typing(node: ast.stmt) -> bool:
    if isinstance(node, ast.Assign):
        return any(isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets)
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def _within(node: ast.AST) -> Iterator[ast.AST]:
    """The node and what it holds, in order, without what is never changed."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return  # documentation
    yield node
    if isinstance(node, ast.Raise | ast.JoinedStr | ast.ImportFrom | ast.Import) or _is_log(node):
        return
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and _name(node.value.func) == "assert_never":
        return
    if isinstance(node, ast.AnnAssign):
        yield from _within(node.value) if node.value else ()
        return
    if isinstance(node, _FUNCTIONS):
        for child in (*node.args.defaults, *(one for one in node.args.kw_defaults if one), *node.body):
            yield from _within(child)
        return
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.keyword) and child.arg == "strict":
            continue
        if isinstance(node, ast.Call) and _name(node.func) in {"cast", "TypeVar", "NewType", "isinstance"}:
            continue
        yield from _within(child)


def _is_log(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and ast.unparse(node.value).startswith("_log.")
    )


def _name(node: ast.AST) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def _changes(node: ast.AST) -> list[ast.AST]:  # noqa: PLR0912 - one case a kind of node
    """What may stand in a node's place."""
    match node:
        case ast.Compare(left=left, ops=[op], comparators=comparators):
            return [ast.Compare(left=left, ops=[other()], comparators=comparators) for other in _COMPARE[type(op)]]
        case ast.Compare(left=left, ops=ops, comparators=comparators):
            return [
                ast.Compare(left=left, ops=[*ops[:i], _COMPARE[type(op)][0](), *ops[i + 1 :]], comparators=comparators)
                for i, op in enumerate(ops)
            ]
        case ast.BinOp(left=left, op=op, right=right):
            if isinstance(op, ast.Mod) and isinstance(left, ast.Constant) and isinstance(left.value, str):
                return []
            return [ast.BinOp(left=left, op=_BINARY[type(op)](), right=right)]
        case ast.AugAssign(target=target, op=op, value=value):
            return [ast.AugAssign(target=target, op=_BINARY[type(op)](), value=value), ast.Pass()]
        case ast.BoolOp(op=op, values=values):
            other = ast.Or() if isinstance(op, ast.And) else ast.And()
            dropped = [[*values[:i], *values[i + 1 :]] for i in range(len(values))]
            return [
                ast.BoolOp(op=other, values=values),
                *(rest[0] if len(rest) == 1 else ast.BoolOp(op=op, values=rest) for rest in dropped),
            ]
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
            return [operand]
        case ast.Constant(value=bool() as value):
            return [ast.Constant(value=not value)]
        case ast.Constant(value=int() | float() as value):
            return [ast.Constant(value=value + 1), ast.Constant(value=value - 1)]
        case ast.Constant(value=bytes() as value):
            return [ast.Constant(value=value + b"!")]
        case ast.If(test=ast.Compare(ops=[_])) | ast.IfExp(test=ast.Compare(ops=[_])):
            return []  # the comparison's own changes say the same
        case ast.If(test=test, body=body, orelse=orelse):
            return [ast.If(test=_negated(test), body=body, orelse=orelse)]
        case ast.While(body=body, orelse=orelse):
            return [ast.While(test=ast.Constant(value=False), body=body, orelse=orelse)]
        case ast.IfExp(test=test, body=body, orelse=orelse):
            return [ast.IfExp(test=_negated(test), body=body, orelse=orelse)]
        case ast.For(target=target, body=body, orelse=orelse):
            return [ast.For(target=target, iter=ast.Tuple(elts=[], ctx=ast.Load()), body=body, orelse=orelse)]
        case ast.comprehension(target=target, iter=iterable, ifs=ifs, is_async=is_async) if ifs:
            return [ast.comprehension(target=target, iter=iterable, ifs=ifs[:i] + ifs[i + 1 :], is_async=is_async)
                    for i in range(len(ifs))]  # fmt: skip
        case ast.Return(value=value) if value is not None and not isinstance(value, ast.Constant):
            return [ast.Return(value=ast.Constant(value=None))]
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords) if name in _CALLS:
            if name == "sorted":
                return [ast.Call(func=ast.Name(id="list", ctx=ast.Load()), args=args, keywords=[])]
            return [ast.Call(func=ast.Name(id=_CALLS[name], ctx=ast.Load()), args=args, keywords=keywords)]
        case ast.Call(func=ast.Attribute(value=owner, attr="ceil" | "floor" as name), args=args):
            return [
                ast.Call(func=ast.Attribute(value=owner, attr=_CALLS[name], ctx=ast.Load()), args=args, keywords=[])
            ]
        case ast.Expr(value=ast.Call()) | ast.Raise() | ast.Delete():
            return [] if _is_log(node) or _is_never(node) else [ast.Pass()]
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            return [ast.Pass()]
        case ast.Break():
            return [ast.Continue()]
        case ast.Continue():
            return [ast.Break()]
    return []


def _is_never(node: ast.AST) -> bool:
    """What no value of its type reaches: ``assert_never``, and ``raise AssertionError``."""
    if isinstance(node, ast.Raise):
        return node.exc is not None and ast.unparse(node.exc).startswith("AssertionError")
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and _name(node.value.func) == "assert_never"


def _negated(test: ast.expr) -> ast.expr:
    return test.operand if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not) else ast.UnaryOp(
        op=ast.Not(), operand=test
    )  # fmt: skip


def _line(node: ast.AST) -> int:
    if isinstance(node, ast.comprehension):
        return node.ifs[0].lineno
    line: int = getattr(node, "lineno", 1)
    return line


def _text(node: ast.AST) -> str:
    """One line of source, without the bodies of blocks."""
    if isinstance(node, ast.comprehension):
        return "for " + ast.unparse(node.target) + "".join(f" if {ast.unparse(one)}" for one in node.ifs)
    if isinstance(node, ast.If | ast.While | ast.For):
        node = type(node)(**{**{name: getattr(node, name) for name in node._fields}, "body": [], "orelse": []})
    text = ast.unparse(ast.fix_missing_locations(node)).strip().replace("\n", " ")
    return text if len(text) <= 120 else f"{text[:100]}... {_digest(text)[:6]}"
