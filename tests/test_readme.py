# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""What the README promises: its example runs, its names and its pictures exist."""

import functools
import re
from pathlib import Path

import pytest

import numpyro_epi as epi

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
TINY = {
    "num_epochs": 1,
    "num_steps": 5,
    "num_evaluation": 500,
    "warm_start_size": 500,
    "progress_bar": False,
}


def code_blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.mark.core
def test_first_line_says_what_it_is():
    first = next(line for line in README.splitlines() if not line.startswith("#"))
    first = first or README.splitlines()[2]
    assert "emergent property inference" in first.lower()
    assert "not epidemiology" in README.split("\n\n")[1].replace("\n", " ")


@pytest.mark.ci
@pytest.mark.long
def test_example_runs_as_printed(monkeypatch, capsys):
    # Only smaller: the printed lines use the default options.
    monkeypatch.setattr(epi, "EPI", functools.partial(epi.EPI, **TINY))
    example, own_model = code_blocks("python")
    assert len([line for line in example.splitlines() if line.strip()]) <= 16
    names = {}
    exec(compile(example, "README.md", "exec"), names)
    assert "Emergent property inference" in capsys.readouterr().out
    assert names["draws"]["a"].shape == (1000, 4)
    # Final draws are doubled while only their number stands against a verdict.
    assert names["idata"]["posterior"]["a"].shape[::2] == (1, 4)
    assert len([line for line in own_model.splitlines() if line.strip()]) <= 10
    exec(compile(own_model, "README.md", "exec"), names)
    assert names["result"].draws.latents["sigma"].shape[1:] == (4,)


@pytest.mark.core
def test_table_has_the_public_names():
    table = README.split("## What is there")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)", table, re.MULTILINE)
    assert sorted(rows) == sorted(set(epi.__all__) - {"__version__"})


@pytest.mark.core
def test_links_inside_the_repository_exist():
    links = re.findall(r"\]\(((?!https?:)[^)#]+)\)", README)
    links += re.findall(r'src="((?!https?:)[^"]+)"', README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.core
def test_commands_are_targets_of_make():
    targets = (ROOT / "Makefile").read_text()
    for command in re.findall(
        r"^make (\w+)", "\n".join(code_blocks("sh")), re.MULTILINE
    ):
        assert f"\n{command}:" in targets
