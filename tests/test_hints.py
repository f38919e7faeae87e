"""Every command that the page, the documents or a message tells people to type is one that there is."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from omni_rl.cli import app

ROOT = Path(__file__).parents[1]
CODE = re.compile(r"h\(\"code\", [^,]*, [`\"]omni-rl ([^`\"]*)")
QUOTED = re.compile(r"`omni-rl ([a-z][^`]*)`")
BLOCK = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINE = re.compile(r"^omni-rl ([a-z][^#\n]*)", re.MULTILINE)
OPTION = re.compile(r"(?<!\S)--[a-z][a-z-]*")


def pages() -> Iterator[tuple[Path, str]]:
    for path in sorted((ROOT / "services/omni_rl_services/dashboard").rglob("*.js")):
        yield from ((path, found) for found in CODE.findall(path.read_text()))
    for path in [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]:
        text = path.read_text()
        yield from ((path, found) for found in [*QUOTED.findall(text), *LINE.findall("".join(BLOCK.findall(text)))])


def messages() -> Iterator[tuple[Path, str]]:
    """What programs print: prose says `omni-rl wrote it`, so that only what has an option is surely a command."""
    for room in ("omni_rl", "services/omni_rl_services", "examples"):
        for path in sorted(path for kind in ("*.py", "*.js") for path in (ROOT / room).rglob(kind)):
            found = re.findall(r"omni-rl ([a-z][a-z-]* (?:[a-z]+ )?--[^`\"\n,;)<]*)", path.read_text())
            yield from ((path, one) for one in found)


HINTS = sorted({(path.relative_to(ROOT), hint.strip()) for path, hint in [*pages(), *messages()]})


@pytest.mark.parametrize(("path", "hint"), HINTS, ids=lambda value: str(value))
def test_a_hint_is_a_command_with_its_options(path: Path, hint: str) -> None:
    command = get_command(app)
    words = hint.split()
    while isinstance(command, TyperGroup) and words:
        name = words.pop(0).rstrip(".,:;)")
        assert name in command.commands, f"{path}: there is no command {name!r} in `omni-rl {hint}`"
        command = command.commands[name]
    known = {option for parameter in command.params for option in [*parameter.opts, *parameter.secondary_opts]}
    assert set(OPTION.findall(" ".join(words))) <= known | {"--help"}, f"{path}: `omni-rl {hint}`"
