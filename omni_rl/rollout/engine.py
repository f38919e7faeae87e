from omni_rl.rollout import startup
from omni_rl.rollout.settings import EngineSettings


class RolloutEngine:
    def __init__(self, settings: EngineSettings) -> None:
        self.llm_engine = startup.start(settings)
