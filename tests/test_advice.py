# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Every piece of advice in a message of the package is followed, and works.

Texts that tell what to do are found in the source. Each is in one of two tables:
functions that provoke the message and then do as it says, or tests elsewhere.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

import advice_circuits  # noqa: F401
import advice_models  # noqa: F401
import advice_results  # noqa: F401
from advice_table import CASES, SEEN, SLOW

ROOT = Path(__file__).resolve().parents[1]
VERBS = (
    "add|apply|ask|build|call|change|choose|convert|correct|draw|drop|fix|give|increase"
    "|install|join|keep|leave|load|look|lower|make|mark|move|observe|pass|pick|put|raise"
    "|reduce|replace|reparametrise|reshape|restrict|run|set|split|start|stay|take|train"
    "|try|use|warm|widen|wrap|write"
)
# At the start of a sentence or of a text, or after another piece of advice.
ADVICE = re.compile(
    rf"(?:^\s*|[.;:!?}}] |\(|, |` or )(?:{VERBS})\b(?! of\b)", re.IGNORECASE
)

# Advice that a test elsewhere follows: part of the text, and the test.
ELSEWHERE = {
    ("_train/lapack.py", "Give it more workers: set the environment variable NPROC"): (
        "test_lapack.py::test_is_silent_otherwise"
    ),
    ("_train/status.py", "pass it `throw=False`, and make the statistic NaN where"): (
        "test_epi.py::test_the_way_out_for_a_solver_that_gives_up"
    ),
    ("_train/status.py", 'pass `on_invalid="mask"` to `EPI` if they are more than'): (
        "test_callbacks.py::test_the_way_out_for_an_error_in_a_callback"
    ),
    ("_train/status.py", "Pass it `vmap_method="): (
        "test_callbacks.py::test_callbacks_are_called_in_all_ways_of_jax"
    ),
    ("_train/failures.py", "to accept that without a warning, or"): (
        "test_failures.py::test_no_warning_where_it_is_masked_or_nothing_fails"
    ),
    ("_train/agreement.py", "Leave one of these out, or its variance, or {}: the"): (
        "test_copies.py::test_contradictions_are_refused_with_a_way_out_that_works"
    ),
    ("_train/agreement.py", "use `{}, {})`"): (
        "test_copies.py::test_contradictions_are_refused_with_a_way_out_that_works"
    ),
    ("_train/agreement.py", "Leave one of these out, or its variance."): (
        "test_copies.py::test_leaving_one_out_is_a_way_out"
    ),
    ("_train/verdict.py", "Use draws of the law (`result.law.sample`)"): (
        "test_result_law.py::test_samples_are_resampled_and_not_simulated"
    ),
    ("_files/_checkpoint.py", "Pass another path as `checkpoint`, or delete"): (
        "test_checkpoint.py::test_ways_out_of_a_refused_checkpoint_work"
    ),
    ("_files/_reading.py", "the guide and the optimiser of the run."): (
        "test_files.py::test_the_optimiser_is_asked_for_again"
    ),
    ("_files/_checkpoint.py", "Make the folder, or pass another path."): (
        "test_checkpoint.py::test_misuse_is_named_and_can_be_mended"
    ),
    ("_run.py", "Leave out one of them."): (
        "test_checkpoint.py::test_misuse_is_named_and_can_be_mended"
    ),
    ("_run.py", "Leave it out for a run without a limit."): (
        "test_checkpoint.py::test_misuse_is_named_and_can_be_mended"
    ),
    ("_run.py", "Pass `callbacks=[function]`."): (
        "test_checkpoint.py::test_misuse_is_named_and_can_be_mended"
    ),
    ("epi.py", "Make one with `EPI.init`."): (
        "test_checkpoint.py::test_misuse_is_named_and_can_be_mended"
    ),
    ("_run.py", "Pass that of the model as `model_kwargs="): (
        "test_checkpoint.py::test_arguments_of_a_model_with_the_names_of_a_run"
    ),
    ("arviz.py", 'Use `draws="guide"`'): (
        "test_result_law.py::test_what_is_asked_of_arviz_is_checked"
    ),
    ("law.py", "Ask for fewer, or for draws of the guide"): (
        "test_result_law.py::test_more_draws_than_are_effective_are_warned_of"
    ),
    ("_model/arguments.py", "Pass these arrays themselves, or keep them"): (
        "test_arguments.py::test_what_cannot_be_copied_is_refused_with_a_way_out"
    ),
    ("_coordinates.py", "Pass the mask to the model as an argument"): (
        "test_coordinates.py::test_a_mask_that_depends_on_latents_is_refused"
    ),
    ("_train/guide.py", "Pass the guide's class, or use"): (
        "test_coordinates.py::test_guides_of_numpyro_have_the_same_coordinates"
    ),
    ("diagnostics/__init__.py", "Use `result.law.sample(rng_key, num_samples)`."): (
        "test_result_law.py::test_corrected_draws_name_their_replacement"
    ),
    ("handlers/tilt.py", "Drop `subsample_size`, or use `numpyro.infer.HMCECS`"): (
        "test_noisy_likelihood.py::test_ways_out_of_the_refusal_work"
    ),
    ("_train/precision.py", "or sufficient statistics of them"): (
        "math/test_precision.py::test_log_likelihoods_too_large_lose_nats"
    ),
    ("_train/lost.py", "use distributions of NumPyro at the sites {}"): (
        "test_lost.py::test_an_unnormalised_prior_is_named"
    ),
    ("_model/params.py", "which a network takes only together, got none of"): (
        "test_params.py::test_a_flax_network_with_a_state"
    ),
}
# Texts that are no advice: they only look like it.
OTHERS = {("plotting/_key.py", "lower left")}


class Text(NamedTuple):
    file: str
    line: int
    text: str


def literal(node: ast.AST) -> str | None:
    """A text in the source, with `{}` for what is filled in."""
    match node:
        case ast.Constant(value=str() as text):
            return text
        case ast.JoinedStr(values):
            parts = (v.value if isinstance(v, ast.Constant) else "{}" for v in values)
            return "".join(map(str, parts))
    return None


def is_documented(node: ast.AST) -> bool:
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    return isinstance(node, kinds)


def texts(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """All texts of a module but docstrings and parts of other texts."""
    skipped = set()
    for node in ast.walk(tree):
        if is_documented(node) and ast.get_docstring(node) is not None:
            skipped.add(id(node.body[0].value))
        if isinstance(node, ast.JoinedStr):
            skipped |= {id(inner) for inner in ast.walk(node)} - {id(node)}
    for node in ast.walk(tree):
        text = literal(node)
        if text is not None and id(node) not in skipped and " " in text.strip():
            yield node.lineno, text


@cache
def advice() -> list[Text]:
    found = []
    for path in sorted((ROOT / "numpyro_epi").rglob("*.py")):
        file = path.relative_to(ROOT / "numpyro_epi").as_posix()
        for line, text in texts(ast.parse(path.read_text())):
            if ADVICE.search(text):
                found.append(Text(file, line, text))
    return found


TABLES = [*CASES, *ELSEWHERE, *OTHERS]


def test_every_advice_of_the_source_is_in_a_table():
    missing = [
        text
        for text in advice()
        if not any(text.file == file and part in text.text for file, part in TABLES)
    ]
    assert not missing


def test_every_entry_of_the_tables_is_in_the_source():
    stale = [
        (file, part)
        for file, part in TABLES
        if not any(text.file == file and part in text.text for text in advice())
    ]
    assert not stale


def test_advice_is_recognised():
    """Broken twin: what is not recognised is in no table either."""
    for text in ("Expected x, got y. Use z.", "load it with that one.", "a; try b"):
        assert ADVICE.search(text)
    for text in ("Expected a use of x.", "The run ended", "{} of {} draws"):
        assert not ADVICE.search(text)


@pytest.mark.parametrize("name", ELSEWHERE.values())
def test_tests_elsewhere_exist(name):
    file, function = name.split("::")
    tree = ast.parse((ROOT / "tests" / file).read_text())
    names = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
    assert function in names


def pattern(part: str) -> re.Pattern:
    """A part of a message, whatever is filled in, however it is wrapped."""
    pieces = (re.escape(" ".join(piece.split())) for piece in part.split("{}"))
    return re.compile(".*?".join(pieces))


def cases() -> Iterator[pytest.param]:
    """For each function the entries that it serves."""
    for function in dict.fromkeys(CASES.values()):
        entries = [key for key, value in CASES.items() if value is function]
        marks = [pytest.mark.long] if function in SLOW else []
        yield pytest.param(entries, id=function.__name__, marks=marks)


@pytest.mark.parametrize("entries", list(cases()))
def test_advice_works(entries):
    SEEN.clear()
    CASES[entries[0]]()
    for _, part in entries:
        assert any(pattern(part).search(text) for text in SEEN), part
