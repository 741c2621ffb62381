"""Commands from typed functions."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from anifacediff_core.lab.options import File, Positive, add_command, call


@dataclass(frozen=True)
class Group:
    rows: Annotated[Positive | None, "how many"] = None
    fast: Annotated[bool, "not slowly", {"names": ("--no-haste",)}] = True
    hidden: int = 7


def command(
    first: Annotated[Path, "a file"],
    /,
    name: Annotated[str, "whose", {"names": ("-n", "--name")}],
    group: Group,
    kind: Annotated[Literal["a", "b"], "which"] = "a",
    color: Annotated[tuple[float, float], "where", {"metavar": ("X", "Y")}] = (1.0, 2.0),
    several: Annotated[tuple[Literal["c", "d"], ...], "of these"] = (),
    part: Annotated[Sequence[str], "repeat it"] = ("x",),
    long_name: Annotated[File, "another file"] = None,
    all: Annotated[bool, "everything"] = False,
) -> list[Any]:
    """Do what
    is asked.
    """
    return [first, name, group, kind, color, several, part, long_name, all]


@pytest.fixture
def run() -> Callable[..., Any]:
    parser = argparse.ArgumentParser()
    add_command(parser.add_subparsers(), "do", command)

    def run(*arguments: str) -> Any:
        options = parser.parse_args(["do", *arguments])
        return call(options.run, vars(options))

    return run


def test_what_is_left_out_is_the_functions_default(run: Callable[..., Any]) -> None:
    assert run("f", "-n", "me") == [Path("f"), "me", Group(), "a", (1.0, 2.0), (), ["x"], None, False]


def test_options_have_the_types_of_parameters(run: Callable[..., Any]) -> None:
    given = "f --name me --rows 3 --no-haste --kind b --color 3 4 --several d c --part y --part z"
    found = run(*given.split(), "--long-name", "g", "--all")
    expected = [
        Path("f"),
        "me",
        Group(3, False),
        "b",
        (3.0, 4.0),
        ("d", "c"),
        ["x", "y", "z"],
        Path("g"),
        True,
    ]
    assert found == expected
    assert run("f", "-n", "me") == command(Path("f"), "me", Group(), part=["x"]), "nothing is kept"


@pytest.mark.parametrize(
    "given", ["", "f", "f -n me --rows 0", "f -n me --kind c", "f -n me --several e", "f -n me --hidden 1"]
)
def test_what_no_command_takes_is_refused(
    run: Callable[..., Any], given: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run(*given.split())
    assert caught.value.code == 2 and "error: " in capsys.readouterr().err


def test_the_docstring_and_the_annotations_are_the_help(
    run: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run("--help")
    shown = " ".join(capsys.readouterr().out.split())
    for text in ("do what is asked", "--rows ROWS how many", "which (default: a)", "--all everything", "X Y"):
        assert text in shown
