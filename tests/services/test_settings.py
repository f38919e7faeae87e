"""Settings at their bounds, and their defaults where a user meets them."""

from pathlib import Path
from typing import Any

import pytest
from omni_rl_services.coordinator.settings import (
    MIB,
    Bounds,
    CoordinatorSettings,
    MediaSettings,
    TensorboardSettings,
    TlsSettings,
    TokenEntry,
    WandbSettings,
)
from omni_rl_services.coordinator.webhooks import PagerSettings, WebhookSettings
from pydantic import SecretStr

from omni_rl.api.state import Scope
from omni_rl.errors import ConfigError

HASH = "0" * 64


@pytest.mark.parametrize(
    ("name", "within", "beyond"),
    [
        ("port", [0, 65_535], [-1, 65_536]),
        ("metrics_runs", [1, 100], [0]),
        ("metrics_threads", [1, 8], [0]),
        ("worst_samples", [0, 16], [-1]),
        ("silent_after", [0.001, 1e9], [0, -1]),
        ("settle", [1, 10], [0]),
    ],
)
def test_a_number_of_the_coordinators_settings_has_its_bounds(name: str, within: list[Any], beyond: list[Any]) -> None:
    for value in within:
        assert getattr(CoordinatorSettings(**{name: value}), name) == value
    for value in beyond:
        with pytest.raises(ConfigError, match=name):
            CoordinatorSettings(**{name: value})


@pytest.mark.parametrize(
    "name", ["body", "part", "json_part", "update", "media", "pixels", "frames", "samples", "subscribers"]
)
def test_a_bound_of_nothing_is_refused(name: str) -> None:
    assert getattr(Bounds(**{name: 1}), name) == 1
    with pytest.raises(ConfigError, match=name):
        Bounds(**{name: 0})


def test_the_least_memory_is_64_mib() -> None:
    assert Bounds(memory=64 * MIB).memory == 67_108_864
    assert Bounds().memory is None
    with pytest.raises(ConfigError, match="memory"):
        Bounds(memory=64 * MIB - 1)


def test_bounds_are_what_the_documents_say_of_them() -> None:
    bounds = Bounds()
    mib = {name: getattr(bounds, name) / 2**20 for name in ("body", "part", "json_part", "update", "media")}
    assert mib == {"body": 1, "part": 256, "json_part": 8, "update": 32, "media": 32}
    # Pillow takes a quarter of a gibibyte of three bytes a pixel for a bomb; an hour of sound at 16 kHz.
    assert bounds.pixels == 1024**3 // 4 // 3
    assert bounds.samples == 3600 * 16_000
    assert (bounds.frames, bounds.subscribers) == (4096, 512)


def test_a_coordinator_that_is_told_nothing_is_on_this_machine_alone() -> None:
    settings = CoordinatorSettings()
    assert (settings.host, settings.port, settings.is_loopback) == ("127.0.0.1", 8400, True)
    assert (settings.ledger, settings.standby, settings.cookies_are_secure) == (
        "sqlite:///runs/ledger.db",
        False,
        False,
    )
    assert (settings.silent_after, settings.settle, settings.worst_samples) == (30 * 60, 3, 16)
    assert (settings.metrics_runs, settings.metrics_threads) == (16, 1)
    nothing = ("tls", "wandb", "tensorboard", "cluster", "tokens_file", "address_file")
    assert [getattr(settings, name) for name in nothing] == [None] * 6
    assert [getattr(settings, name) for name in ("tokens", "weight_roots", "allowed_hosts")] == [()] * 3


def test_media_are_kept_for_thirty_days_and_ten_gibibytes() -> None:
    rules = MediaSettings().rules
    assert (rules.keep, rules.quota, rules.days) == (True, 10 * 2**30, 30)
    assert MediaSettings(days=None, keep=False).rules.days is None
    assert MediaSettings(quota=1, days=0.1).quota == 1
    for wrong in ({"quota": 0}, {"days": 0}, {"days": -1}):
        with pytest.raises(ConfigError):
            MediaSettings(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("said", "near"),
    [
        ({"host": "0.0.0.0"}, False),
        ({"host": "0.0.0.0", "tokens": (TokenEntry(name="a", scope=Scope.READ, sha256=HASH),)}, True),
        ({"host": "0.0.0.0", "tokens_file": Path("tokens.json")}, True),
        ({"host": "localhost"}, True),
        ({"host": "127.9.9.9"}, True),
        ({"host": "::1"}, True),
        ({"host": "LOCALHOST"}, False),
        ({"host": "128.0.0.1"}, False),
        ({"host": "localhost.example"}, False),
    ],
)
def test_other_machines_reach_a_coordinator_with_tokens_alone(said: dict[str, Any], near: bool) -> None:
    if near:
        CoordinatorSettings(**said)
    else:
        with pytest.raises(ConfigError, match="tokens are needed"):
            CoordinatorSettings(**said)


@pytest.mark.parametrize(
    ("said", "taken"),
    [
        ({}, True),
        ({"name": "a" * 64}, True),
        ({"name": "a" * 65}, False),
        ({"name": ""}, False),
        ({"name": "A.b_c-9"}, True),
        ({"name": "a b"}, False),
        ({"name": "a\n"}, False),
        ({"sha256": "f" * 64}, True),
        ({"sha256": "f" * 63}, False),
        ({"sha256": "f" * 65}, False),
        ({"sha256": "F" * 64}, False),
        ({"sha256": "g" * 64}, False),
        ({"scope": "root"}, False),
        ({"token": "orl_x"}, False),
    ],
)
def test_a_token_is_a_name_a_scope_and_a_hash(said: dict[str, Any], taken: bool) -> None:
    values = {"name": "ann", "scope": "read", "sha256": HASH, **said}
    if taken:
        TokenEntry(**values)
    else:
        with pytest.raises(ConfigError):
            TokenEntry(**values)


@pytest.mark.parametrize(
    ("kind", "said"),
    [(TlsSettings, {"certificate": "c"}), (WandbSettings, {"entity": "e"}), (TensorboardSettings, {})],
)
def test_what_a_part_needs_has_to_be_said(kind: Any, said: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="required"):
        kind(**said)


def webhook(name: str = "ops", url: str = "https://ops.example/x", **said: Any) -> WebhookSettings:
    return WebhookSettings(name=name, url=SecretStr(url), **said)


def test_a_webhook_is_sent_what_asks_for_a_mask_or_more_in_our_own_form() -> None:
    one = webhook()
    assert (one.template, one.least, one.secret_file) == ("omni-rl", "mask", None)


@pytest.mark.parametrize(
    ("url", "taken"),
    [
        ("http://ops.example", True),
        ("https://ops.example:8443/a?b=c", True),
        ("  https://ops.example\n", True),
        ("ops.example", False),
        ("/x", False),
        ("", False),
        ("file:///etc/passwd", False),
        ("http:///x", False),
        ("http://xn--/", False),
    ],
)
def test_a_webhooks_address_is_one_that_can_be_asked(url: str, taken: bool) -> None:
    if taken:
        assert webhook(url=url).url.get_secret_value() == url.strip()
    else:
        with pytest.raises(ConfigError, match="webhook ops: url is no http or https address"):
            webhook(url=url)


def test_pagerduty_needs_its_key_and_others_do_not() -> None:
    with pytest.raises(ConfigError, match="webhook ops: pagerduty takes its routing key from secret_file"):
        webhook(template="pagerduty")
    webhook(template="pagerduty", secret_file=Path("key"))
    webhook(template="slack")


def test_webhooks_are_sixteen_at_most_with_a_name_each() -> None:
    sixteen = tuple(webhook(f"ops-{number}") for number in range(16))
    assert len(PagerSettings(webhooks=sixteen).webhooks) == 16
    with pytest.raises(ConfigError, match="webhooks"):
        PagerSettings(webhooks=(*sixteen, webhook("one-more")))
    with pytest.raises(ConfigError, match="two webhooks have one name"):
        PagerSettings(webhooks=(webhook("a"), webhook("b"), webhook("a")))
    assert (PagerSettings().page, PagerSettings().guide) == (None, "docs/operating.md")


@pytest.mark.parametrize("length", [0, 64, 65])
def test_a_webhooks_name_has_64_characters_at_most(length: int) -> None:
    if length == 64:
        webhook("a" * length)
    else:
        with pytest.raises(ConfigError, match="name"):
            webhook("a" * length)
