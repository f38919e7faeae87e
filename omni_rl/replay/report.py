"""Writes a replay as lines of text. The verdict is the last line, because that is where a terminal ends."""

from collections.abc import Iterator

from omni_rl.consistency.shown import shown
from omni_rl.counting import counted
from omni_rl.replay.findings import ItemFound, Replay, Sides, WeightsFound

DIGEST = 12
"""The characters of a digest that are shown."""
TEXT = 16
"""The most characters of a token that are shown."""


def lines(found: Replay) -> Iterator[str]:
    """Yield the report's lines. Everything in it may have been written by others: no control character reaches the
    terminal."""
    tokens = counted(len(found.ids), "sampled token")
    yield f"sample     {_shown(found.sample)} of {_shown(found.step)}: {found.kind}, {tokens}"
    yield f"weights    {_weights(found.weights, found.dtype)}"
    yield f"prompt     {counted(found.prompt_tokens, 'token')}, rendered to the recorded ids"
    for item in found.media:
        yield from _item(item)
    yield from _tokens(found)
    yield f"recorded   {_figures(found.recorded)}{_temperature(found.temperature)}"
    yield f"now        {_figures(found.now)}  (engine prefill and trainer, temperature 1)"
    yield f"modules    {_modules(found)}"
    yield f"{'agree' if found.agree else 'disagree'} in {found.dtype}: {found.reason}"


def _weights(weights: WeightsFound, dtype: str) -> str:
    ours, recorded = weights.checkpoint[:DIGEST], ", ".join(map(_shown, weights.recorded)) or "none"
    if weights.equal:
        return f"the recorded ones: {recorded}"
    if weights.equal is None:
        return f"the record names no digest (it says: {recorded}); this checkpoint is {ours} in {dtype}"
    return f"OTHERS than recorded: this checkpoint is {ours} in {dtype}, the record names {recorded}"


def _item(item: ItemFound) -> Iterator[str]:
    states = {True: "equal", False: "OTHER", None: "not recorded"}
    tensors = ", ".join(f"{_shown(tensor.name)} {states[tensor.equal]}" for tensor in item.tensors)
    yield f"{item.modality + ' ' + str(item.index):<11}{tensors}"
    if item.note:
        yield f"           {item.note}"


def _tokens(found: Replay) -> Iterator[str]:
    yield f"{'':<29}{'recorded':>24}{'now':>33}"
    yield f"{'token':>5} {'id':>7}  {'text':<18}{'rollout':>8}{'train':>9}{'d':>10}{'engine':>13}{'train':>9}{'d':>10}"
    for n, (number, text) in enumerate(zip(found.ids, found.texts, strict=True)):
        then, now = (f"{s.rollout[n]:>9.4f}{s.train[n]:>9.4f}{s.d[n]:>+10.1e}" for s in (found.recorded, found.now))
        yield f"{n:>5} {number:>7}  {_quoted(text):<18}{then.removeprefix(' ')}    {now}"


def _figures(sides: Sides) -> str:
    return f"mean |d| {shown(sides.abs_diff_mean, '.2e')}, max {shown(sides.abs_diff_max, '.2e')}"


def _temperature(temperature: float) -> str:
    return "" if temperature == 1 else f"  (at temperature {temperature:g}; now is at 1)"


def _modules(found: Replay) -> str:
    first = found.first_outside
    if first is not None:
        return (
            f"first outside its band: {first.module}, off by {first.relative:.2e} of its norm (band {first.band:.0e}), "
            f"most in row {first.row}; {sum(module.outside for module in found.modules)} of {len(found.modules)} are"
            + (", and the logprobs agree all the same" if found.agree else "")
        )
    widest = max(found.modules, key=lambda module: module.relative / module.band)
    return (
        f"all {len(found.modules)} within their bands; the widest is {widest.module}, off by {widest.relative:.2e} of "
        f"its norm (band {widest.band:.0e})"
    )


def _quoted(text: str) -> str:
    quoted = repr(text)
    return quoted if len(quoted) <= TEXT else f"{quoted[: TEXT - 1]}…"


def _shown(text: str) -> str:
    return text if text.isprintable() else repr(text)
