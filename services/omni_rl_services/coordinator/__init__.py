"""The coordinator: one process that keeps the ledger, judges drift and answers REST. Imports neither torch nor Ray."""
