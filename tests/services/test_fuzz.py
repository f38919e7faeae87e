"""20,000 mutated requests to every route, on both databases: no fault of ours, no growth, no standstill."""

from pathlib import Path

import pytest
from omni_rl_services.coordinator.auth import new_token

from omni_rl_bench.fuzz.command import BLOCK, GROWTH, NO_CLUSTER
from omni_rl_bench.fuzz.run import Report, fuzz
from omni_rl_bench.fuzz.values import RUNS
from tests.postgres import Postgres

SEED = 0
SQLITE, POSTGRESQL = 16_000, 4_000


@pytest.mark.slow
def test_16_000_on_sqlite_with_a_cluster(tmp_path: Path) -> None:
    settings = {"ledger": f"sqlite:///{tmp_path}/ledger.db", "weight_roots": [str(tmp_path)]}
    report = fuzz(tmp_path, settings, range(SQLITE), seed=SEED, module="tests.services.fuzzed")
    assert report.missing == []
    assert report.statuses.keys() >= {200, 201, 204, 400, 403, 404, 405, 409, 413, 414, 415, 422, 431}
    holds(report)


@pytest.mark.slow
def test_4_000_on_postgresql_with_tokens_and_h11(tmp_path: Path, postgres: Postgres) -> None:
    token, kept = new_token()
    settings = {
        "ledger": postgres.new_database(),
        "tokens": [{"name": "me", "scope": "admin", "sha256": kept}],
    }
    numbers = [*range(RUNS), *range(SQLITE, SQLITE + POSTGRESQL)]
    report = fuzz(
        tmp_path, settings, numbers, seed=SEED, token=token, outages=NO_CLUSTER, module="tests.services.fuzzed_light"
    )
    assert report.statuses.keys() >= {200, 401, 404, 409, 422}
    holds(report)


def holds(report: Report) -> None:
    assert not report.findings, "\n".join(one.again(report.seed) for one in report.findings[:20])
    assert report.logged == []
    assert report.growth < GROWTH
    assert report.longest < BLOCK, report.where
