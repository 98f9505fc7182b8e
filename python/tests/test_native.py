"""What the native half says of itself for type checkers is what it is."""

import ast
import inspect
import unittest

from support import ROOT

from bpm import _native


def declared():
    """The classes of `_native.pyi`: attributes, and the names of every method's arguments."""
    tree = ast.parse((ROOT / "python/bpm/_native.pyi").read_text())
    classes, names = {}, set()
    for node in tree.body:
        if isinstance(node, ast.AnnAssign):
            names.add(node.target.id)
        if isinstance(node, ast.ClassDef):
            attributes = {n.target.id for n in node.body if isinstance(n, ast.AnnAssign)}
            methods = {n.name: [a.arg for a in n.args.args[1:]] for n in node.body if isinstance(n, ast.FunctionDef)}
            classes[node.name] = (attributes, methods)
    return classes, names | set(classes)


def real(kind):
    """The same of a class."""
    attributes, methods = set(), {}
    for name, value in vars(kind).items():
        if inspect.isgetsetdescriptor(value):
            attributes.add(name)
        elif callable(value) and not name.startswith("__"):
            methods[name] = list(inspect.signature(value).parameters)[1:]
    if "__new__" in vars(kind):
        methods["__init__"] = list(inspect.signature(kind).parameters)
    return attributes, methods


class Stub(unittest.TestCase):
    def test_it_is_true(self):
        classes, names = declared()
        public = {name for name in vars(_native) if not name.startswith("_")} | {"__version__"}
        self.assertEqual(names, public)
        for name, found in classes.items():
            kind = getattr(_native, name)
            if issubclass(kind, Exception):
                base = {"SpecError": ValueError, "DeviceError": RuntimeError, "SpecWarning": UserWarning}[name]
                self.assertTrue(issubclass(kind, base))
                continue
            self.assertEqual(found, real(kind), name)


if __name__ == "__main__":
    unittest.main()
