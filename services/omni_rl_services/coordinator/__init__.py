"""The coordinator: one process that keeps the ledger, judges drift and answers REST. It imports neither torch nor
Ray."""
