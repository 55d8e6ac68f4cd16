"""docs/command-line.md names every option of every command, and none that does not exist."""

import re
from pathlib import Path

import pytest
import typer

from robust_policies.cli.app import app

PAGE = (Path(__file__).parents[2] / "docs" / "command-line.md").read_text(encoding="utf-8")
COMMANDS = typer.main.get_command(app).commands
SECTIONS = dict(re.findall(r"^## (.+)\n((?:(?!## ).*\n)*)", PAGE, flags=re.MULTILINE))
# Of all commands: the page names them at its top.
EVERYWHERE = {"--help", "--version", "--debug"}


def options_of(command):
    found = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    return {name for name in found if name.startswith("-")} - EVERYWHERE


def named_in(text):
    return set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", text)) - EVERYWHERE


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_of_a_command_is_named_and_no_other(name):
    assert name in SECTIONS, f"docs/command-line.md has no section {name!r}"
    assert named_in(SECTIONS[name]) == options_of(COMMANDS[name])


def test_the_table_lists_the_commands():
    assert set(re.findall(r"^\| `([a-z]+)[ `]", PAGE.partition("## ")[0], flags=re.MULTILINE)) == set(COMMANDS)
