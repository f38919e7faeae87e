"""`python -m tests.services.fuzzed SETTINGS.json`: the watched coordinator with a cluster that is not
there but answers, so that what asks a cluster is reached as well."""

import json
import sys
from pathlib import Path

from omni_rl.ledger.ledger import Ledger
from omni_rl.ledger.sync_journal import LedgerJournal
from omni_rl_bench.fuzz.watched import main
from tests.services.fake_bridge import FakeBridge

if __name__ == "__main__":
    settings = json.loads(Path(sys.argv[1]).read_text())
    ledger = Ledger.open(settings["ledger"])
    journal = LedgerJournal(ledger, "digits", force=True)
    sys.exit(main(sys.argv[1:], FakeBridge(journal=journal)))
