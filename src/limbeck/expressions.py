"""Settings written as expressions, such as ``0.9 * kl(temperature=4)`` or ``mix(student=0.5)``: no code is run."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from limbeck.errors import UserError


def read_expression(
    text: str, names: Mapping[str, Callable[..., Any]], *, key: str, form: str, sums: bool = True
) -> Any:
    """What ``text`` stands for: calls of ``names`` with numbers, texts and further calls as arguments.

    Args:
        names: what may be called; its signature says with what.
        key: the setting, for errors. form: what is allowed there, in words.
        sums: whether ``+`` and ``*`` may stand between calls and numbers.

    Raises:
        UserError: anything else stands there, or an argument that the callable does not take.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError:
        raise UserError(key, text, form) from None
    return _Reader(text, names, key, form, sums).read(tree)


class _Reader:
    def __init__(self, text: str, names: Mapping[str, Callable[..., Any]], key: str, form: str, sums: bool) -> None:
        self.text, self.names, self.key, self.form, self.sums = text, names, key, form, sums

    def read(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Constant) and isinstance(node.value, (int, float, str, bool)):
            return node.value
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
            return -self.read(node.operand)
        if isinstance(node, ast.Name):
            return self.call(node.id, [], {})
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            given = {keyword.arg or "**": self.read(keyword.value) for keyword in node.keywords}
            return self.call(node.func.id, [self.read(argument) for argument in node.args], given)
        if self.sums and isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Mult)):
            left, right = self.read(node.left), self.read(node.right)
            if isinstance(left, str) or isinstance(right, str):
                raise UserError(self.key, self.text, self.form)
            try:
                return left + right if isinstance(node.op, ast.Add) else left * right
            except TypeError:
                raise UserError(self.key, self.text, self.form) from None
        raise UserError(self.key, self.text, self.form)

    def call(self, name: str, arguments: list[Any], options: dict[str, Any]) -> Any:
        if name not in self.names:
            raise UserError(f"{self.key} {self.text!r}: name", name, self.names)
        try:
            inspect.signature(self.names[name]).bind(*arguments, **options)
            return self.names[name](*arguments, **options)
        except TypeError as error:
            allowed = str(inspect.signature(self.names[name])).replace("'", "")
            raise UserError(f"{self.key} {name}", self.text, f"{name}{allowed}", str(error)) from None
