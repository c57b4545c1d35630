"""Figures for pictures that exist: metrics of pairs and of sets, with intervals."""

from __future__ import annotations

from imageprompt.evaluation.scoring.features import FeatureStore
from imageprompt.evaluation.scoring.pictures import Picture, paired, pictures_in
from imageprompt.evaluation.scoring.score import Score, Scorer

__all__ = ["FeatureStore", "Picture", "Score", "Scorer", "paired", "pictures_in"]
