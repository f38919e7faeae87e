"""What verl loads through the entry point `verl.plugins` when it is imported, in every process of every run that this
package is installed beside.

Nearly all of those have nothing to do with us. So it imports the standard library alone, and does nothing unless
`OMNI_RL_URL` names the coordinator that the run's steps are to be posted to.
"""

import logging
import os

URL = "OMNI_RL_URL"


def install() -> None:
    """Watch the run where `OMNI_RL_URL` asks for it. A verl without the places to look at is left as it is, with a
    warning."""
    if not os.environ.get(URL):
        return
    from omni_rl.watch.verl import watch

    try:
        watch()
    except (ImportError, AttributeError) as error:
        # verl itself tells of a plug-in that fails in its debug log alone.
        logging.getLogger("omni_rl.watch").warning("omni-rl: this verl cannot be watched: %s", error)


# verl loads the module that an entry point names, and calls nothing in it.
install()
