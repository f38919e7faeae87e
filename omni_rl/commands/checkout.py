"""The commands that need a checkout of the project: what they measure with is not part of the installed package."""

from importlib.util import find_spec
from typing import Final

import typer

from omni_rl.errors import ConfigError

HELP: Final = {
    "bench": "Measure; each benchmark writes one file. From a checkout of the project alone.",
    "sabotage": "Break a live service on purpose, fault by fault. From a checkout of the project alone.",
    "soak": "Load, jobs, syncs and random kills in a service of its own. From a checkout of the project alone.",
}


def register(app: typer.Typer) -> None:
    """Add the commands. Where the package is installed without a checkout, they only say that they need one."""
    if find_spec("omni_rl_bench") is not None:
        from omni_rl_bench.commands import register as add

        add(app)
        return
    for name, text in HELP.items():
        app.command(name, help=text, context_settings={"ignore_unknown_options": True, "allow_extra_args": True})(
            _absent
        )


def _absent(context: typer.Context) -> None:
    raise ConfigError(
        f"omni-rl {context.info_name} runs from a checkout of the project alone, and this is an installed package; "
        "in a checkout run make setup, then .venv/bin/omni-rl"
    )
