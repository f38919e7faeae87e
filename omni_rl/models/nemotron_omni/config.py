"""Describes Nemotron Omni by one config.json that the training copy and the engine both read."""

from typing import Any

from transformers import AutoConfig, NemotronHConfig, PretrainedConfig

from omni_rl.errors import ConfigError
from omni_rl.models.nemotron_omni.native_config import MODEL_TYPE, from_native

# CLIP's pixel statistics, which RADIO was trained with; the tiler normalises by them.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

_DTYPES = ("float32", "bfloat16", "float16", "float64", "auto")

# The engine sets these fields itself, always to the same values, and refuses a checkpoint that has them.
_SOUND_SET_BY_ENGINE = ("scale_input", "attention_bias", "max_position_embeddings")


class RadioSectionConfig(PretrainedConfig):  # type: ignore[misc]
    """The `vision_config` of a released checkpoint; `args` (a dict) holds the tower's name, tokens and patch limits."""

    model_type = "radio"


class ParakeetSectionConfig(PretrainedConfig):  # type: ignore[misc]
    """The `sound_config` of a released checkpoint: the encoder's shape and the projection's width."""

    model_type = "parakeet"


class NemotronOmniConfig(PretrainedConfig):  # type: ignore[misc]
    """Configuration of NemotronH_Nano_Omni_Reasoning_V3, in the released checkpoint's names.

    Sections given as dicts become config objects. `video_temporal_patch_size` (frames a tubelet, None or 1: no
    temporal patches) is an extra keyword; without it the value in `vision_config` counts, and the two must agree.
    """

    model_type = "NemotronH_Nano_Omni_Reasoning_V3"
    is_composition = True

    def __init__(
        self,
        vision_config: dict[str, Any] | PretrainedConfig | None = None,
        llm_config: dict[str, Any] | PretrainedConfig | None = None,
        sound_config: dict[str, Any] | PretrainedConfig | None = None,
        force_image_size: int = 512,
        downsample_ratio: float = 0.5,
        patch_size: int = 16,
        template: str | None = None,
        ps_version: str = "v2",
        image_tag_type: str = "internvl",
        projector_hidden_size: int = 20480,
        vit_hidden_size: int = 1280,
        img_context_token_id: int = 18,
        video_context_token_id: int = 131081,
        sound_context_token_id: int = 27,
        video_pruning_rate: float = 0.7,
        **kwargs: Any,
    ) -> None:
        _check_dtypes(config=kwargs, llm_config=llm_config, vision_config=vision_config, sound_config=sound_config)
        self.vision_config: Any = _section(RadioSectionConfig, vision_config)
        self.llm_config: Any = _section(NemotronHConfig, llm_config)
        self.sound_config: Any = _section(ParakeetSectionConfig, sound_config, drop=_SOUND_SET_BY_ENGINE)
        self.force_image_size = force_image_size
        self.downsample_ratio = downsample_ratio
        self.patch_size = patch_size
        self.template = template
        self.ps_version = ps_version
        self.image_tag_type = image_tag_type
        self.projector_hidden_size = projector_hidden_size
        self.vit_hidden_size = vit_hidden_size
        self.img_context_token_id = img_context_token_id
        self.video_context_token_id = video_context_token_id
        self.sound_context_token_id = sound_context_token_id
        self.video_pruning_rate = video_pruning_rate
        self.norm_mean = list(kwargs.pop("norm_mean", CLIP_MEAN))
        self.norm_std = list(kwargs.pop("norm_std", CLIP_STD))
        self.use_thumbnail = kwargs.pop("use_thumbnail", True)
        self.video_temporal_patch_size = _temporal_patch(
            kwargs.pop("video_temporal_patch_size", None), self.vision_config
        )
        kwargs.setdefault("architectures", [self.model_type])
        super().__init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> "NemotronOmniConfig":
        """Return the configuration that a config.json describes: a released one, or one of transformers' native class.

        Raises `ConfigError` for another family's, and for a native one that no released configuration describes.
        """
        kind = config_dict.get("model_type", cls.model_type)
        native = kind == MODEL_TYPE
        if not native and kind != cls.model_type:
            raise ConfigError(
                f"the checkpoint is a {kind!r} model; engines and trainers here serve Nemotron Omni alone, which is "
                f"{cls.model_type!r}"
            )
        loaded: NemotronOmniConfig = super().from_dict(from_native(config_dict) if native else config_dict, **kwargs)
        return loaded

    @property
    def text_config(self) -> PretrainedConfig | None:
        """The language model's section, by the name that vLLM looks for."""
        return self.llm_config

    def get_text_config(self, *args: Any, **kwargs: Any) -> PretrainedConfig:
        """Return the language model's section; the config itself where there is none, as transformers does."""
        return self if self.llm_config is None else self.llm_config


def _check_dtypes(**sections: dict[str, Any] | PretrainedConfig | None) -> None:
    """Refuse an unknown dtype: transformers looks the name up in torch's module, and its error does not say whose dtype
    it is."""
    for name, section in sections.items():
        for key in ("dtype", "torch_dtype"):
            value = section.get(key) if isinstance(section, dict) else None
            if isinstance(value, str) and value not in _DTYPES:
                raise ConfigError(f"{key} of {name} is {value!r}; use one of {', '.join(_DTYPES)}")


def _section(
    kind: type[PretrainedConfig], value: dict[str, Any] | PretrainedConfig | None, drop: tuple[str, ...] = ()
) -> PretrainedConfig | None:
    if not isinstance(value, dict):
        return value
    return kind(**{name: entry for name, entry in value.items() if name != "model_type" and name not in drop})


def _temporal_patch(extra: int | None, vision_config: PretrainedConfig | None) -> int | None:
    section = None if vision_config is None else vision_config.to_dict().get("video_temporal_patch_size")
    if extra is not None and section is not None and extra != section:
        raise ConfigError(
            f"video_temporal_patch_size is {extra}, but vision_config.video_temporal_patch_size is {section}; "
            "give it once, or the same value twice"
        )
    return section if extra is None else extra


def register() -> None:
    """Make `AutoConfig` know the class, which also lets vLLM read the checkpoint. Idempotent."""
    AutoConfig.register(NemotronOmniConfig.model_type, NemotronOmniConfig, exist_ok=True)


register()
