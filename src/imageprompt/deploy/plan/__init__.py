"""plan: memory and time of a base with an adapter, from configs alone."""

from __future__ import annotations

from imageprompt.deploy.plan.gpus import Gpu, gpu_of
from imageprompt.deploy.plan.open import plan
from imageprompt.deploy.plan.plan import Mode, Plan

__all__ = ["Gpu", "Mode", "Plan", "gpu_of", "plan"]
