"""Where incidents are sent: addresses that the operator's own settings name, never a client."""

from pathlib import Path
from typing import Annotated, Literal, Self

import httpx
from pydantic import Field, SecretStr, StringConstraints, field_validator, model_validator

from omni_rl.settings import StrictSettings


class WebhookSettings(StrictSettings):
    """One receiver of incidents. The template `omni-rl` sends the incident as the API has it; `slack` and `pagerduty`
    what these services take."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    url: SecretStr
    """An http or https address. Slack's address is a secret, and no log or answer has it."""
    template: Literal["omni-rl", "slack", "pagerduty"] = "omni-rl"
    secret_file: Path | None = None
    """A file that only its owner may read: the key of the signature, or with pagerduty the routing key."""
    least: Literal["warn", "mask", "pause"] = "mask"
    """The least severity of an incident that is sent."""

    @field_validator("url")
    @classmethod
    def _stripped(cls, url: SecretStr) -> SecretStr:
        return SecretStr(url.get_secret_value().strip())

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if not _can_be_asked(self.url.get_secret_value()):
            raise ValueError(f"webhook {self.name}: url is no http or https address")
        if self.template == "pagerduty" and self.secret_file is None:
            raise ValueError(f"webhook {self.name}: pagerduty takes its routing key from secret_file")
        return self


def _can_be_asked(url: str) -> bool:
    """Return whether httpx, which is to send there, takes the address."""
    try:
        address = httpx.URL(url)
        return address.scheme in ("http", "https") and address.host != ""
    except (httpx.InvalidURL, UnicodeError):  # the host's name may be none that can be encoded
        return False


class PagerSettings(StrictSettings):
    """Who is sent incidents, and where their links lead."""

    webhooks: tuple[WebhookSettings, ...] = Field(default=(), max_length=16)
    page: str | None = None
    """The address under which people reach the dashboard, for links to it."""
    guide: str = "docs/operating.md"
    """The address at which this project's operating guide is read; an anchor is added to it."""

    @model_validator(mode="after")
    def _named_apart(self) -> Self:
        if len({one.name for one in self.webhooks}) < len(self.webhooks):
            raise ValueError("two webhooks have one name")
        return self


NOBODY = PagerSettings()
"""No webhooks: incidents are on the page and in the API alone."""
