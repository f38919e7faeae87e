"""NeMo RL: one line that wraps its logger, which is handed every step's logprobs.

    from omni_rl.watch.nemo_rl import watch
    watch(logger)

The other way needs no line: `omni-rl watch nemo-rl DIRECTORY` follows the files that the logger writes.
"""

import re
from collections.abc import Mapping
from typing import Any, Protocol

from omni_rl.consistency.posted.step import LogprobsOf
from omni_rl.errors import RecordError
from omni_rl.watch.guard import guarded
from omni_rl.watch.place import PostingRank
from omni_rl.watch.readers.nemo_rl import USED, Rows, step_values
from omni_rl.watch.values import size_of
from omni_rl.watch.watcher import Watcher

DUMP = re.compile(r"train_data_step(\d+)\.jsonl$")


class Logger(Protocol):
    """The part of `nemo_rl.utils.logger.Logger` that is used."""

    def log_batched_dict_as_jsonl(self, to_log: Any, filename: str) -> None: ...


def watch(logger: Logger, *, kind: str = "text", logprobs_of: LogprobsOf | None = None, **settings: Any) -> Watcher:
    """Post every training step that `logger` writes; the driver is the only process that has one.

    Args:
        kind: The kind of the prompts: text, image and so on.
        logprobs_of: As `vllm_cfg.logprobs_mode` says, where that is set.
        settings: Arguments of the `Watcher`, such as `run`, `dtype`, `train_dtype`.
    """
    watcher = Watcher(**{"framework": "nemo-rl", "place": PostingRank(0, 1), **settings})
    write = logger.log_batched_dict_as_jsonl

    def post(step: int, batch: Mapping[str, Any]) -> int:
        # The dictionary may change; the lists in it are copies of tensors, which NeMo RL made for this call.
        columns = {name: batch[name] for name in USED if name in batch}
        return watcher.step_later(
            lambda: step_values(rows_of(step, columns), kind, logprobs_of), size=size_of(columns), step=step
        )

    def log_batched_dict_as_jsonl(to_log: Any, filename: str) -> None:
        write(to_log, filename)
        if (found := DUMP.search(str(filename))) is not None:
            guarded(lambda: post(int(found[1]), to_log))

    logger.log_batched_dict_as_jsonl = log_batched_dict_as_jsonl  # type: ignore[method-assign]
    return watcher


def rows_of(step: int, columns: Mapping[str, Any]) -> Rows:
    """Return the sequences of a batch that the logger was given.

    Raises:
        RecordError: the columns are not of one length.
    """
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise RecordError(f"step {step}: columns of several lengths: {lengths}")
    count = next(iter(lengths.values()), 0)
    return [(f"step {step}, sequence {n}", {name: column[n] for name, column in columns.items()}) for n in range(count)]
