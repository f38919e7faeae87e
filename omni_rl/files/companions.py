"""The files that stand in a checkpoint directory beside the weights, held from load to save.

They are held as bytes, not as a path: between load and save a run may delete the directory, or somebody may save over
it.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from omni_rl.files.saving import fits
from omni_rl.files.weights import PICKLED

logger = logging.getLogger(__name__)

CONFIG = "config.json"
_WEIGHTS = (
    *("*.safetensors", "*.index.json", *PICKLED, "adapter_config.json"),
    *("*.gguf", "*.h5", "*.msgpack", "*.onnx", "*.npz", "*.npy"),
)
# These files hold measurements or states of the weights beside them, and would be wrong beside other weights.
_MEASURED = ("figures.json", "*_results.json", "trainer_state.json")
# The one folder that transformers reads with a tokenizer.
_TEMPLATES = "additional_chat_templates"
_LIMIT = 2**28
"""The most bytes of such files that are held, the smallest files first; a tokenizer has about 2^24."""


@dataclass(frozen=True)
class Companions:
    """Tokenizer, generation and processor configurations, remote code, licences: all files but config.json and weights.

    `config` is the text of config.json, `files` maps names relative to `directory` to contents. `left_out` names the
    files that were too large to hold or could not be read.
    """

    directory: Path
    config: str
    files: Mapping[str, bytes]
    left_out: tuple[str, ...] = ()

    @classmethod
    def read(cls, directory: Path) -> "Companions":
        """Read the companions of a checkpoint directory. Raises `OSError` if it has no config.json."""
        files, left_out, held = {}, [], 0
        named = [path for path in directory.iterdir() if not path.name.startswith(".") and path.name != CONFIG]
        paths = [path for path in named if path.is_file() and not fits(path.name, (*_WEIGHTS, *_MEASURED))]
        paths += (path for path in (directory / _TEMPLATES).glob("*.jinja") if path.is_file())
        for path in sorted(paths, key=lambda path: (path.stat().st_size, path.name)):
            held += path.stat().st_size
            name = str(path.relative_to(directory))
            try:
                if held > _LIMIT:
                    left_out.append(name)
                else:
                    files[name] = path.read_bytes()
            except PermissionError:
                left_out.append(name)
        config = (directory / CONFIG).read_bytes().decode()  # not read_text, which would change the ends of lines
        return cls(directory.resolve(), config, files, tuple(left_out))

    def write(self, directory: Path) -> None:
        """Write all files but config.json into `directory`; log the names of those that are not held."""
        for name, content in self.files.items():
            path = directory / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        if self.left_out:
            logger.warning("not saved, because large or unreadable: %s; copy from %s", self.left_out, self.directory)

    def differing(self, directory: Path) -> list[str]:
        """Return the names of the files that `directory` has too, with another content."""
        return [
            name
            for name, content in self.files.items()
            if (directory / name).is_file() and (directory / name).read_bytes() != content
        ]
