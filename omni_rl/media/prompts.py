"""Checks a prompt's media and makes them plain, without vLLM, so that it is done before anything crosses a process."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from omni_rl.errors import MediaError, PromptError
from omni_rl.kinds import Kind
from omni_rl.media.formats import FORMATS
from omni_rl.media.types import Prompt


def plain(prompt: Prompt) -> Prompt:
    """Return the prompt with upright RGB pictures, mono sounds at 16 kHz and contiguous frames. A plain prompt is
    returned equal.

    Raises `PromptError` if the text is no Unicode or its placeholders and media do not match, `MediaError` if an item
    is empty, unreadable or too long; both name the prompt and the item.
    """
    _check_text(prompt)
    _check_counts(prompt)
    media: dict[str, Any] = {}
    for kind, items in prompt.media.items():
        media[FORMATS[kind].field] = tuple(_plain(prompt.id, kind, number, item) for number, item in enumerate(items))
    return replace(prompt, **media)


def _plain(prompt_id: str, kind: Kind, number: int, item: Any) -> Any:
    with named(prompt_id, kind, number):
        return FORMATS[kind].plain(item)


@contextmanager
def named(prompt_id: str, kind: Kind, number: int) -> Iterator[None]:
    """Have a `MediaError` that leaves this block name the prompt and the item."""
    try:
        yield
    except MediaError as error:
        raise MediaError(f"prompt {prompt_id!r}, {kind} {number}: {error}") from error


def _check_text(prompt: Prompt) -> None:
    try:
        prompt.text.encode()
    except UnicodeEncodeError as error:
        raise PromptError(
            f"prompt {prompt.id!r}: its text has half a surrogate pair at {error.start}, which is no character; decode "
            "the text as UTF-8"
        ) from error


def _check_counts(prompt: Prompt) -> None:
    for kind, items in prompt.media.items():
        placeholder, count = FORMATS[kind].placeholder, len(items)
        found = prompt.text.count(placeholder)
        if found != count:
            raise PromptError(
                f"prompt {prompt.id!r} has {found} {placeholder} in its text but {count} {kind} item(s); "
                "give one placeholder per item"
            )
