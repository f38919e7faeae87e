"""verl loads this module through the entry point `verl.plugins` when it is imported, in every process of every run that
this package is installed beside.

Nearly all of those runs have nothing to do with us. So the module imports the standard library alone, and does nothing
unless `OMNI_RL_URL` names the coordinator that the run's steps are to be posted to, or `OMNI_RL_AGENT` asks for the
agent, to which the run's updates are announced.
"""

import logging
import os

URL = "OMNI_RL_URL"
AGENT = "OMNI_RL_AGENT"


def install() -> None:
    """Watch the run where `OMNI_RL_URL` asks for it, and announce its updates where `OMNI_RL_AGENT` does.

    A version of verl without the functions that are watched is left as it is, with a warning.
    """
    try:
        if os.environ.get(URL):
            from omni_rl.watch.verl import watch

            watch()
        if os.environ.get(AGENT, "0") not in ("", "0"):
            from omni_rl.watch.verl_updates import announce_updates

            announce_updates()
    except (ImportError, AttributeError) as error:
        # verl itself tells of a plug-in that fails in its debug log alone.
        logging.getLogger("omni_rl.watch").warning("omni-rl: this verl cannot be watched: %s", error)


# verl loads the module that an entry point names, and calls nothing in it.
install()
