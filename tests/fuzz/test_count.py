"""How many examples there are in all."""

import ast
from pathlib import Path

from tests.fuzz.common import GROUPS


def test_count():
    """About a thousand by default and more than ten thousand in a campaign; `fuzz` fails where there are fewer."""
    few, many = map(sum, zip(*GROUPS.values(), strict=True))
    print(f"fuzz: {few} examples by default, {many} with -m campaign")
    assert few >= 1000 and many >= 10_000


def test_every_group_has_a_test():
    used = [
        decorator.args[0].value
        for path in Path(__file__).parent.glob("test_*.py")
        for function in ast.walk(ast.parse(path.read_text()))
        if isinstance(function, ast.FunctionDef)
        for decorator in function.decorator_list
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "sizes"
    ]
    assert sorted(used) == sorted(GROUPS)
