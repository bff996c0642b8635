"""The gate of the mutants: its catalogue fits the sources, and it passes only if every bug was found."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from mutants.__main__ import run
from mutants.catalogue import MUTANTS
from mutants.gate import Judgement, judge
from mutants.mutant import Mutant
from tests.house.sources import ROOT, tree

SOURCE = """
def double(number: int) -> int:
    # Twice.
    return 2 * number
"""
TESTS = """
from thing import double

def test_three() -> None:
    assert double(3) == 6

def test_none() -> None:
    assert double(0) == 0
"""
FILE = "thing.py"
TESTED_BY = ("tests/test_thing.py::test_three",)
HARMFUL = Mutant("harmful", FILE, "three is doubled wrongly", "2 * number", "3 * number", TESTED_BY)
HARMLESS = Mutant("harmless", FILE, "nothing", "# Twice.", "# Two times.", TESTED_BY)
ENDLESS = Mutant("endless", FILE, "it never ends", "    return", "    while True: pass\n    return", TESTED_BY)
UNSEEN = Mutant(
    "unseen", FILE, "three is doubled wrongly", "2 * number", "3 * number", ("tests/test_thing.py::test_none",)
)
SENSELESS = Mutant("senseless", FILE, "nothing can be imported", "def double", "def def", TESTED_BY)
GONE = Mutant("gone", FILE, "nothing, since it is gone", "4 * number", "5 * number", TESTED_BY)
TWICE = Mutant("twice", FILE, "it is not said where", "number", "another", TESTED_BY)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project so small that trying a mutant takes a second."""
    monkeypatch.setattr("mutants.mutant.PACKAGE", Path("src"))
    for name, text in (("src/thing.py", SOURCE), ("tests/test_thing.py", TESTS)):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def judged(project: Path, *mutants: Mutant) -> Judgement:
    return judge(project, mutants, jobs=2, tell=lambda text: None)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_fits_the_sources(mutant: Mutant) -> None:
    """Else nobody would notice that a bug is tried no more: its passage occurs once, and its tests exist."""
    assert mutant.occurs(ROOT) == 1
    assert mutant.before != mutant.after
    assert mutant.tests
    for test in mutant.tests:
        file, _, name = test.partition("[")[0].rpartition("::")
        path = ROOT / file.partition("::")[0]
        kit = (ROOT / "src/jobq/testing").glob("*.py") if "::" in file else [path]
        assert any(name in functions(source) for source in kit), test


def functions(path: Path) -> set[str]:
    return {node.name for node in ast.walk(tree(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_no_two_mutants_have_one_name() -> None:
    """A name is how one of them is asked for."""
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


def test_the_quick_ones_are_few_and_need_no_server() -> None:
    """Since every check tries them."""
    quick = [mutant for mutant in MUTANTS if mutant.quick]

    assert 10 <= len(quick) <= 20
    assert not [mutant.name for mutant in quick if mutant.file.startswith("storage/redis")]


@pytest.mark.slow
def test_what_the_tests_find_is_killed(project: Path) -> None:
    """By the test that failed first, and in a copy: the project itself stays as it was."""
    judgement = judged(project, HARMFUL)

    assert judgement.passed
    assert [(v.fate, v.by) for v in judgement.verdicts] == [("killed", "tests/test_thing.py::test_three")]
    assert (project / "src/thing.py").read_text(encoding="utf-8") == SOURCE


@pytest.mark.slow
def test_what_the_tests_do_not_find_survives(project: Path) -> None:
    """Whether it does no harm, or its tests look elsewhere."""
    judgement = judged(project, HARMLESS, UNSEEN, HARMFUL)

    assert not judgement.passed
    assert [verdict.fate for verdict in judgement.verdicts] == ["survived", "survived", "killed"]


@pytest.mark.slow
def test_what_hangs_is_killed_and_told_so(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was noticed, but whoever waits for such a test waits for long."""
    monkeypatch.setattr("mutants.trial.TEST_LIMIT", 1)

    judgement = judged(project, ENDLESS)

    assert judgement.passed
    assert [(v.fate, v.by) for v in judgement.verdicts] == [("hung", "tests/test_thing.py::test_three")]


@pytest.mark.slow
def test_what_no_test_can_be_run_on_is_no_mutant(project: Path) -> None:
    """That it cannot be imported is found by anybody, and proves nothing about the tests."""
    judgement = judged(project, SENSELESS)

    assert not judgement.passed
    assert [verdict.fate for verdict in judgement.verdicts] == ["broken"]


def test_a_mutant_whose_passage_does_not_occur_once_is_stale(project: Path) -> None:
    """It is said how often it occurs, and the gate fails."""
    judgement = judged(project, GONE, TWICE)

    assert not judgement.passed
    assert [(v.fate, v.by) for v in judgement.verdicts] == [
        ("stale", "its passage occurs 0 times in thing.py"),
        ("stale", "its passage occurs 2 times in thing.py"),
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        pytest.param("== 6", "== 7", "tests/test_thing.py::test_three", id="it fails"),
        pytest.param("test_three", "test_four", "not found", id="it does not exist"),
        pytest.param("    assert double(3) == 6", '    __import__("pytest").skip("no")', "SKIPPED", id="it is skipped"),
    ],
)
def test_tests_that_do_not_pass_without_a_bug_prove_nothing(project: Path, before: str, after: str, said: str) -> None:
    """Then no mutant is tried."""
    path = project / "tests/test_thing.py"
    path.write_text(TESTS.replace(before, after), encoding="utf-8")

    judgement = judged(project, HARMFUL)

    assert not judgement.passed
    assert judgement.verdicts == ()
    assert said in judgement.problem


@pytest.mark.slow
def test_the_table_and_the_file_tell_what_became_of_each(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And the exit code is that of a failure if one survived."""
    found = project / "found.json"

    assert run(project, [HARMFUL, HARMLESS, GONE], json=found) == 1

    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert [line.split()[0] for line in lines] == ["mutant", "harmful", "harmless", "gone"]
    assert ["test_three" in line for line in lines] == [False, True, False, False]
    assert "SURVIVED" in lines[2]
    assert "STALE" in lines[3]
    assert "3 mutants: 1 killed, 1 survived, 1 stale" in printed.err
    told = json.loads(found.read_bytes())
    assert [mutant["fate"] for mutant in told["mutants"]] == ["killed", "survived", "stale"]
    assert told["passed"] is False
