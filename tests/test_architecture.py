# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""The shape of the package: who may import whom, and what importing it may do.

Sources are parsed, not run, except in the last tests.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

pytestmark = pytest.mark.core

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "numpyro_epi"
HEADER = (
    "# Copyright Contributors to the numpyro_epi project.\n"
    "# SPDX-License-Identifier: Apache-2.0\n"
)


class Layer(NamedTuple):
    """What the modules of one layer may import besides themselves and `stdlib`."""

    inside: frozenset[str]  # of the package
    outside: frozenset[str]  # of other distributions
    lazily: frozenset[str] = frozenset()  # of the package, inside functions


def layer(inside: str, outside: str, lazily: str = "") -> Layer:
    return Layer(*(frozenset(names.split()) for names in (inside, outside, lazily)))


BASE = "_typing _checks"
MATHS = f"{BASE} _math"
SITES = f"{MATHS} primitives handlers _charts _sites _coordinates"
MODEL = f"{SITES} _model"
TRAIN = f"{MODEL} _solver _train"
RESULT = f"{TRAIN} _draws law _restart result diagnostics sensitivity _files _report"

# A row for each module or folder at the top of the package, lowest first.
LAYERS = {
    # 0. what everyone needs
    "_typing": layer("", "jax numpy"),
    "_checks": layer("_typing", "jax numpy"),
    # 1. pure mathematics on arrays
    "_math": layer(BASE, "jax numpy"),
    # 2. the model
    "primitives": layer(MATHS, "jax numpy numpyro"),
    "handlers": layer(f"{MATHS} primitives", "jax numpy numpyro"),
    "_charts": layer(BASE, "jax numpy numpyro"),
    "_sites": layer(f"{BASE} _charts", "jax numpy numpyro", lazily="_coordinates"),
    "_coordinates": layer(f"{MATHS} primitives _charts _sites", "jax numpy numpyro"),
    "guides": layer(f"{BASE} _sites", "jax numpy numpyro"),
    "circuits": layer(f"{BASE} primitives", "jax numpy numpyro diffrax"),
    "_model": layer(SITES, "jax numpy numpyro optax"),
    # 3. the law, and the trainer: takes any guide by interface, and returns a result
    "_solver": layer(MODEL, "jax numpy numpyro"),
    "_train": layer(
        f"{MODEL} _solver", "jax numpy numpyro optax tqdm", lazily="guides"
    ),
    "epi": layer(
        f"{TRAIN} _assemble _files _run result",
        "jax numpy numpyro optax tqdm",
        lazily="guides",
    ),
    "_assemble": layer(f"{TRAIN} _draws law _restart result", "jax numpy"),
    "_draws": layer("", "numpy"),
    "law": layer(f"{MATHS} _draws", "jax numpy"),
    "_restart": layer("_train _draws law", "numpy"),
    # 4. on the result
    "result": layer(RESULT, "jax numpy numpyro", lazily="arviz plotting"),
    "_report": layer(RESULT, "numpy"),
    "_files": layer(f"{RESULT} guides", "jax numpy"),
    "_run": layer(f"{TRAIN} _files", "numpy"),
    "diagnostics": layer(RESULT, "jax numpy numpyro"),
    "sensitivity": layer(RESULT, "jax numpy numpyro optax"),
    "arviz": layer(RESULT, "jax numpy numpyro arviz xarray"),
    "plotting": layer(RESULT, "jax numpy arviz matplotlib"),
}
# 5. the public names
LAYERS["__init__"] = layer(" ".join(LAYERS), "")

IMPORTED_LAZILY = {"arviz", "matplotlib", "xarray"}


class Import(NamedTuple):
    target: str  # "jax", or a row of LAYERS if inside the package
    is_inside: bool
    is_lazy: bool  # in a function, or for the type checker only
    line: int


def top(module: str) -> str:
    """Row of `LAYERS` that a dotted module name belongs to."""
    return [*module.split("."), "__init__"][1]


def children_run_on_import(node: ast.AST) -> Iterator[ast.AST]:
    match node:
        case ast.FunctionDef(args=args) | ast.AsyncFunctionDef(args=args):
            yield from [*node.decorator_list, args]
        case ast.Lambda(args=args):
            yield args
        case ast.If(test=ast.Name("TYPE_CHECKING") | ast.Attribute(_, "TYPE_CHECKING")):
            yield from node.orelse
        case _:
            yield from ast.iter_child_nodes(node)


def run_on_import(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    for child in children_run_on_import(node):
        yield from run_on_import(child)


def imported_names(parent: str, node: ast.AST) -> list[str]:
    """Absolute dotted names that an import statement may load."""
    match node:
        case ast.Import(names):
            return [name.name for name in names]
        case ast.ImportFrom(base, names, level):
            if level:
                parents = parent.split(".")
                parents = parents[: len(parents) + 1 - level]
                base = ".".join(parents + ([base] if base else []))
            if base == PACKAGE:
                rows = [name.name for name in names]
                return [f"{base}.{row}" if row in LAYERS else base for row in rows]
            return [base]
        case _:
            return []


def imports(parent: str, tree: ast.Module) -> Iterator[Import]:
    """Imports of a module that lies in the package `parent`."""
    eager = {id(node) for node in run_on_import(tree)}
    for node in ast.walk(tree):
        for name in imported_names(parent, node):
            is_inside = name.split(".")[0] == PACKAGE
            target = top(name) if is_inside else name.split(".")[0]
            yield Import(target, is_inside, id(node) not in eager, node.lineno)


def check_import(row: str, found: Import) -> Iterator[str]:
    if row not in LAYERS:
        return
    inside, outside, lazily = LAYERS[row]
    if found.is_inside:
        allowed = inside | {row} | (lazily if found.is_lazy else set())
        if found.target not in allowed:
            yield f"`{row}` imports `{found.target}`"
    elif found.target in IMPORTED_LAZILY and not found.is_lazy:
        yield f"`{found.target}` imported at module level"
    elif found.target not in outside | sys.stdlib_module_names:
        yield f"`{row}` imports `{found.target}`"


def check_cycles(edges: dict[str, set[str]]) -> Iterator[str]:
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as err:
        yield f"import cycle: {' -> '.join(err.args[1])}"


def violations(sources: dict[str, str]) -> list[str]:
    """Broken rules in a package given as {path relative to its parent: source}."""
    found = []
    edges: dict[str, set[str]] = {}
    lazy_guides = 0
    for path, source in sources.items():
        parent, _, name = path.removesuffix(".py").replace("/", ".").rpartition(".")
        row, tree = top(f"{parent}.{name}"), ast.parse(source)
        if row not in LAYERS:
            found.append(f"{path}: `{row}` has no layer")
        if not source.startswith(HEADER):
            found.append(f"{path}: no licence header")
        for node in ast.walk(tree):
            if isinstance(node, ast.Assert):
                found.append(f"{path}:{node.lineno}: `assert` in the package")
        for item in imports(parent, tree):
            found += [f"{path}:{item.line}: {text}" for text in check_import(row, item)]
            if item.is_inside and not item.is_lazy and item.target != row:
                edges.setdefault(row, set()).add(item.target)
            lazy_guides += item.is_inside and item.is_lazy and item.target == "guides"
    if lazy_guides > 1:
        found.append("more than one lazy import of `guides`")
    return found + list(check_cycles(edges))


def python_files(*folders: str) -> dict[str, str]:
    paths = [path for name in folders for path in sorted((ROOT / name).rglob("*.py"))]
    return {path.relative_to(ROOT).as_posix(): path.read_text() for path in paths}


def test_package_obeys_its_layers():
    assert violations(python_files(PACKAGE)) == []


def test_scripts_and_tests_have_the_licence_header():
    sources = python_files("benchmarks", "docs", "examples", "tests")
    assert [path for path, text in sources.items() if not text.startswith(HEADER)] == []


# Broken twins: (path in the package, its source, what the checker must say).
BROKEN = [
    ("novel.py", "", "`novel` has no layer"),
    ("novel/part.py", "", "`novel` has no layer"),
    ("_checks.py", "import numpyro", "`_checks` imports `numpyro`"),
    ("_math/dual.py", "from numpyro import sample", "`_math` imports `numpyro`"),
    ("_math/dual.py", "def f():\n    import numpyro", "`_math` imports `numpyro`"),
    ("_math/dual.py", "from ..handlers import tilt", "`_math` imports `handlers`"),
    ("_math/__init__.py", "from ..epi import EPI", "`_math` imports `epi`"),
    ("primitives.py", "from .handlers import tilt", "`primitives` imports `handlers`"),
    ("handlers/tilt.py", "from .. import guides", "`handlers` imports `guides`"),
    ("guides/spline.py", "import numpyro_epi._math.dual", "`guides` imports `_math`"),
    ("guides/spline.py", "import flowjax.flows", "`guides` imports `flowjax`"),
    ("circuits/stg.py", "from ..handlers import tilt", "`circuits` imports `handlers`"),
    ("epi.py", "from . import guides", "`epi` imports `guides`"),
    ("epi.py", "from . import plotting", "`epi` imports `plotting`"),
    ("epi.py", "from numpyro_epi import EPI", "`epi` imports `__init__`"),
    ("result.py", "from .circuits import stg", "`result` imports `circuits`"),
    (
        "result.py",
        "def f():\n    from . import circuits",
        "`result` imports `circuits`",
    ),
    ("plotting.py", "import matplotlib.pyplot", "`matplotlib` imported at module"),
    ("arviz.py", "if True:\n    import arviz", "`arviz` imported at module level"),
    ("arviz.py", "class A:\n    import arviz", "`arviz` imported at module level"),
    ("epi.py", "def f(x):\n    assert x", "`assert` in the package"),
]


@pytest.mark.parametrize(("path", "source", "message"), BROKEN)
def test_checker_flags_a_broken_module(path, source, message):
    (found,) = violations({f"{PACKAGE}/{path}": HEADER + source})
    assert message in found


def test_checker_flags_a_missing_header():
    spdx_only = HEADER.splitlines(keepends=True)[1]
    (found,) = violations({f"{PACKAGE}/epi.py": spdx_only})
    assert "no licence header" in found


def test_checker_flags_a_cycle():
    sources = {
        f"{PACKAGE}/result.py": HEADER + "from ._files import save",
        f"{PACKAGE}/_files.py": HEADER + "from .result import EPIResult",
    }
    (found,) = violations(sources)
    assert "import cycle" in found


def test_checker_flags_a_second_lazy_import_of_guides():
    lazy = HEADER + "def f():\n    from numpyro_epi.guides import AutoRealNVP"
    assert violations({f"{PACKAGE}/epi.py": lazy}) == []
    (found,) = violations({f"{PACKAGE}/epi.py": lazy, f"{PACKAGE}/_train/a.py": lazy})
    assert "more than one lazy import" in found


# Sound twins: each is next to a broken one, and the checker must pass it.
SOUND = [
    ("__init__.py", "from . import circuits, guides\nfrom .epi import EPI as EPI"),
    ("_math/dual.py", "import jax.numpy as jnp\nfrom .importance import psis"),
    ("_math/__init__.py", "from . import dual\nfrom .._checks import check_shape"),
    ("_train/loop.py", "import tqdm\nfrom ..handlers.tilt import tilt"),
    ("epi.py", "from ._train import loop\nfrom .result import EPIResult"),
    ("arviz.py", "def to_arviz(result):\n    import arviz"),
    (
        "plotting.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import matplotlib",
    ),
]


@pytest.mark.parametrize(("path", "source"), SOUND)
def test_checker_passes_a_sound_module(path, source):
    assert violations({f"{PACKAGE}/{path}": HEADER + source}) == []


# Names what one statement does to a process, besides defining names.
PROBE = """
import logging, sys, warnings
import diffrax, jax, numpyro, optax

def settings():
    return {
        "jax configuration": dict(jax.config.values),
        "warning filters": list(warnings.filters),
        "log handlers": list(logging.getLogger().handlers),
    }

before = settings()
exec(sys.argv[1])
after = settings()
effects = [name for name in before if before[name] != after[name]]
effects += [name for name in ("arviz", "matplotlib") if name in sys.modules]
try:
    jax.config.update("jax_num_cpu_devices", 1)
except RuntimeError:
    effects.append("device in use")
print(effects)
"""


def side_effects(statement: str) -> list[str]:
    command = [sys.executable, "-c", PROBE, statement]
    probe = subprocess.run(
        command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    )
    return ast.literal_eval(probe.stdout)


def test_import_has_no_side_effects():
    assert side_effects(f"import {PACKAGE}") == []


def test_probe_sees_side_effects():
    statements = {
        "jax configuration": "jax.config.update('jax_enable_x64', True)",
        "warning filters": "warnings.simplefilter('ignore')",
        "log handlers": "logging.basicConfig()",
        "matplotlib": "import matplotlib",
        "device in use": "jax.numpy.zeros(1)",
    }
    assert side_effects("; ".join(statements.values())) == list(statements)
