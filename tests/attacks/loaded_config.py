"""Imported before attacks on configs: pydantic has built its validators, as in any second run."""

from imageprompt.training.config.config import TrainingConfig

TrainingConfig.load({"data": "pictures", "output": "out"})
