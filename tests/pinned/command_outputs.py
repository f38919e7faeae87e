"""The commands as a user meets them, run in this process: what they print, and what their help offers."""

import re
from typing import Any

from typer.testing import CliRunner

from omni_rl.cli import app

WIDE = {"COLUMNS": "240", "LINES": "100", "NO_COLOR": "1"}
"""An option takes one line, whatever the terminal is."""
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
FRAMES = re.compile(r"[│╭╮╰╯─┃|]+")
DEFAULT = re.compile(r"\[default: +(?P<value>[^\]]*)\]")


def every_help(command: tuple[str, ...] = ()) -> dict[str, str]:
    """The help text of omni-rl, of each of its commands and of each command of a group, by what is typed."""
    text = help_of(command)
    found = {" ".join(("omni-rl", *command)): text}
    for name, offered in offers(text).items():
        if offered["is"] == "command":
            found |= every_help((*command, name))
    return found


def help_of(command: tuple[str, ...]) -> str:
    """As `omni-rl COMMAND --help` prints it, 240 columns wide, without colours and without what fills its lines."""
    done = CliRunner().invoke(app, [*command, "--help"], env=WIDE, prog_name="omni-rl")
    assert done.exit_code == 0, done.output
    lines = (re.sub(r"\s*│?$", "", line) for line in COLOURS.sub("", done.stdout).splitlines())
    return re.sub("─+", "─", "\n".join(lines)).strip() + "\n"


def offers(text: str) -> dict[str, Any]:
    """What a help text offers: arguments and options by name with their type and default, and commands.

    Descriptions are for people and may be put better.
    """
    found: dict[str, Any] = {}
    section = ""
    for line in text.splitlines():
        if line.startswith("╭"):
            section = FRAMES.sub("", line).strip()
            continue
        cells = [cell for cell in re.split(r"\s{2,}", FRAMES.sub("", line).strip()) if cell]
        if not section or not cells or line.startswith("╰") or not line.startswith("│"):
            continue
        if section == "Commands":
            found[cells[0].split()[0]] = {"is": "command"}
            continue
        required = cells[0] == "*"
        cells = cells[1:] if required else cells
        names = [cell.split()[0] for cell in cells if cell.startswith("--")] or [cells[0].split()[0]]
        kinds = [cell for cell in cells[1:] if cell.startswith("<")]
        offered = {"is": section.lower(), "type": kinds[0] if kinds else "", "required": required}
        if default := DEFAULT.search(line):
            offered["default"] = default["value"]
        found |= dict.fromkeys(names, offered)
    return found


def printed(*arguments: str, env: dict[str, str] | None = None) -> tuple[int, str]:
    """Exit code and standard output of `omni-rl ARGUMENTS`. Errors that we raise on purpose are raised."""
    done = CliRunner().invoke(app, list(arguments), env={**WIDE, **(env or {})}, prog_name="omni-rl")
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout
