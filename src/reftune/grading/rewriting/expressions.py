"""Statements and expressions: what monty lacks becomes a call of `prelude/language.py`."""

import ast

from .imports import Imports, attribute
from .library import ADDED, LANGUAGE

_TYPES = {"str", "list", "dict", "set", "frozenset", "tuple", "int", "float", "bytes"}
_METHODS = {name for type_ in (str, list, dict, set, tuple) for name in dir(type_) if name[0] != "_"}
_METHODS |= {"appendleft", "popleft", "most_common", "elements"}
_METHODS -= {"fromkeys", "maketrans"}
_ADDED_METHODS = {"bit_length", "bit_count", "is_integer", "as_integer_ratio", "sub", "strptime"}
_ITERATORS = {"map": "mapped", "filter": "filtered"}
_LISTS = {"zip", "enumerate", "reversed"}  # in monty; iterators in Python
_CONSUMERS = {"list", "tuple", "set", "frozenset", "dict", "sorted", "sum", "min", "max", "any", "all"}
_SHORT = {"any", "all"}  # which stop early: whoever counts calls would count too many
_CONSUMERS |= {"Counter", "deque", "join", "extend", "update", "fromkeys", "fsum", "prod"}
_ORDERS = {"__lt__", "__le__", "__gt__", "__ge__", "Fraction", "cmp_to_key"}
_TRUTHS = {"__bool__", "__len__", "Fraction"}
_OF_INTEGERS = {"floor", "ceil", "trunc", "gcd", "lcm", "comb", "perm", "factorial", "isqrt"}
_NOTHING = ast.arguments([], [], None, [], [], None, [])
_ORDER = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)


class Rewriter(Imports):
    """Change the tree of a program into one that monty knows."""

    def __init__(self, tree: ast.Module) -> None:
        super().__init__(tree)
        self._ordered, self._weighed = bool(self.own & _ORDERS), bool(self.own & _TRUTHS)
        self._renamed = {"round": "rounded"}
        if self._ordered:
            self._renamed |= {"sorted": "ordered", "min": "smallest", "max": "largest"}
        if self._weighed:
            self._renamed |= {"len": "length", "bool": "truth", "any": "some", "all": "every"}
            self._renamed |= {"filter": "filtered"}
        modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        self._endless = "itertools" in self.own | modules  # whose count() no list can hold
        if self._endless or "groupby" in self.own:  # whose groups are gone once the next is taken
            self._renamed["enumerate"] = "numbered"
        self._dated = bool(self.own & {"datetime", "timedelta"})
        self._consumed: set[int] = set()
        self._conditions: set[int] = set()
        # Their values may be answers, which prelude/language.py makes plain numbers.
        self.changed = bool(self.own & {"decimal", "Decimal", "fractions", "Fraction"})

    # Statements

    def visit_Delete(self, node: ast.Delete) -> list[ast.stmt]:
        made: list[ast.stmt] = []
        for target in map(self.visit, node.targets):
            if isinstance(target, ast.Name):
                made.append(ast.Assign([ast.Name(target.id, ast.Store())], ast.Constant(None)))
            elif isinstance(target, ast.Subscript):
                made.append(ast.Expr(self.call("remove", target.value, _key(target.slice))))
            else:
                made.append(ast.Delete([target]))
        self.changed = True
        return made

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        if any(self.is_builtin(base, {"object"}) for base in node.bases):
            node.bases, self.changed = [], True
        return self.generic_visit(node)

    def visit_For(self, node: ast.For) -> ast.AST:
        if not self._endless:
            self._consumed.add(id(node.iter))
        return self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.AST:
        self._consumed.add(id(node.value))  # xs += (x for x in ys)
        return self.generic_visit(node)

    # Expressions

    def visit_comprehension(self, node: ast.comprehension) -> ast.AST:
        if not self._endless:
            self._consumed.add(id(node.iter))
        for test in node.ifs:
            self._mark(test)
        self.generic_visit(node)
        node.ifs = [self._test(test) for test in node.ifs]
        return node

    def visit_GeneratorExp(self, node: ast.GeneratorExp) -> ast.AST:
        whole = id(node) in self._consumed
        walrus = any(isinstance(inner, ast.NamedExpr) for inner in ast.walk(node))
        self.generic_visit(node)
        if whole or walrus:
            return node
        first, *rest = node.generators
        item = ast.List([ast.Name("_reftune_item")], ast.Load())
        one = ast.comprehension(first.target, item, first.ifs, 0)
        step = _lambda("_reftune_item", ast.ListComp(node.elt, [one, *rest]))
        return self.call("lazy", first.iter, step)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        function = node.func
        name = function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")
        if name in _CONSUMERS and not (name in _SHORT and (self._endless or self._acts(node))):
            self._consumed |= {id(argument) for argument in node.args}
        whole = id(node) in self._consumed
        self._consumed |= {id(arg.value) for arg in node.args if isinstance(arg, ast.Starred)}
        if isinstance(function, ast.Attribute):
            if not self.is_builtin(function.value, _TYPES):
                function.value = self.visit(function.value)
        elif not isinstance(function, ast.Name):
            node.func = self.visit(function)
        node.args = [self.visit(argument) for argument in node.args]
        node.keywords = [self.visit(keyword) for keyword in node.keywords]
        if isinstance(node.func, ast.Attribute):
            return self._of_method(node, node.func)
        if name == "timedelta":
            return self.call("delta", node.func, *node.args, keywords=node.keywords)
        return self._of_builtin(node, name, whole) if self.is_builtin(node.func, {name}) else node

    def _acts(self, node: ast.Call) -> bool:
        """Tell whether a call has others inside that may do more than return a value."""
        calls = [inner.func for inner in ast.walk(node) if isinstance(inner, ast.Call)]
        return any(not isinstance(f, ast.Name) or f.id in self.own for f in calls)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        """Replace a builtin as a value, as in `map(round, xs, digits)`; calls do not come here."""
        if node.id not in self._renamed or not self.is_builtin(node, self._renamed):
            return node
        return self.known(self._renamed[node.id])

    def _of_builtin(self, node: ast.Call, name: str, whole: bool) -> ast.Call:
        renamed = dict(self._renamed)
        if len(node.args) == 1 and not node.keywords and not isinstance(node.args[0], ast.Starred):
            del renamed["round"]
        renamed |= {"pow": "power"} if len(node.args) == 3 else {}
        renamed |= {} if whole else _ITERATORS
        if name in renamed:
            return self.call(renamed[name], *node.args, keywords=node.keywords)
        if name in _LISTS and not whole:
            self.changed = True
            return ast.Call(ast.Name("iter"), [node], [])
        return node

    def _of_method(self, node: ast.Call, function: ast.Attribute) -> ast.Call:
        owner, name = function.value, function.attr
        if name in _ADDED_METHODS or (name == "sort" and self._ordered):
            return self.call(name, owner, *node.args, keywords=node.keywords)
        if name == "timedelta":
            return self.call("delta", function, *node.args, keywords=node.keywords)
        if name == "setrecursionlimit":
            return self.call("plain", *node.args)
        if isinstance(owner, ast.Name) and owner.id == "math" and "Fraction" in self.own:
            if name not in _OF_INTEGERS:
                node.args = [self.call("plain", argument) for argument in node.args]
        elif isinstance(owner, ast.Name) and (owner.id, name) in ADDED:
            self.need("language")
            node.func = attribute(LANGUAGE, name)
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        self.generic_visit(node)
        if node.attr not in _METHODS or not isinstance(node.ctx, ast.Load):
            return node
        call = ast.Call(attribute("_o", node.attr), [ast.Starred(ast.Name("_a"))], [])
        call.keywords = [ast.keyword(None, ast.Name("_k"))]
        function = _lambda("_o", call)
        function.args.vararg, function.args.kwarg = ast.arg("_a"), ast.arg("_k")
        return self.call("method", node.value, ast.Constant(node.attr), function)

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        name = {ast.Mult: "times", ast.Div: "divided"}.get(type(node.op))
        return self.call(name, node.left, node.right) if self._dated and name else node

    # Order and truth

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        self.generic_visit(node)
        if not self._ordered or not any(isinstance(op, _ORDER) for op in node.ops):
            return node
        left, pairs = node.left, list[ast.expr]()
        for number, (op, side) in enumerate(zip(node.ops, node.comparators, strict=True)):
            kept = f"_reftune_{number}"  # the middle of `a < b < c`, which is evaluated once
            last = number == len(node.ops) - 1
            pairs.append(self._pair(op, left, side if last else ast.NamedExpr(ast.Name(kept), side)))
            left = ast.Name(kept)
        return pairs[0] if len(pairs) == 1 else ast.BoolOp(ast.And(), pairs)

    def _pair(self, operator: ast.cmpop, a: ast.expr, b: ast.expr) -> ast.expr:
        if isinstance(operator, ast.Gt | ast.GtE):
            a, b = b, a
        if isinstance(operator, _ORDER):
            return self.call("less" if isinstance(operator, ast.Lt | ast.Gt) else "at_most", a, b)
        return ast.Compare(a, [operator], [b])

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        """Ask `a` in `a or b`, whose value is not only a condition, whether it is true."""
        condition = id(node) in self._conditions
        self.generic_visit(node)
        plain = all(isinstance(value, ast.Compare | ast.Constant) for value in node.values[:-1])
        if not self._weighed or condition or plain:
            return node
        name = "either" if isinstance(node.op, ast.Or) else "both"
        made = node.values[-1]
        for value in reversed(node.values[:-1]):
            made = self.call(name, value, ast.Lambda(_NOTHING, made))
        return made

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.op, ast.Not):
            node.operand = self._test(node.operand)
        return node

    def _test(self, node: ast.expr) -> ast.expr:
        """Return a condition that asks the program's own classes whether they are true."""
        negated = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)  # which has been asked
        if not self._weighed or negated or isinstance(node, ast.Compare | ast.Constant):
            return node
        if isinstance(node, ast.BoolOp):
            node.values = [self._test(value) for value in node.values]
        else:
            return self.call("truth", node)
        return node

    def _mark(self, node: ast.expr) -> None:
        """Note which `and` and `or` are conditions and nothing more."""
        if isinstance(node, ast.BoolOp):
            self._conditions.add(id(node))
            for value in node.values:
                self._mark(value)

    def _visit_tested(self, node: ast.If | ast.While | ast.IfExp | ast.Assert) -> ast.AST:
        self._mark(node.test)
        self.generic_visit(node)
        node.test = self._test(node.test)
        return node

    def visit_match_case(self, node: ast.match_case) -> ast.AST:
        self.generic_visit(node)
        node.guard = self._test(node.guard) if node.guard else None
        return node

    visit_If = visit_While = visit_IfExp = visit_Assert = _visit_tested


def _key(node: ast.expr) -> ast.expr:
    if not isinstance(node, ast.Slice):
        return node
    ends = [end or ast.Constant(None) for end in (node.lower, node.upper, node.step)]
    return ast.Call(ast.Name("slice"), ends, [])


def _lambda(argument: str, body: ast.expr) -> ast.Lambda:
    return ast.Lambda(ast.arguments([], [ast.arg(argument)], None, [], [], None, []), body)
