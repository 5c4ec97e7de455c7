"""Damage found in images by a model that knows clean ones: scores, a threshold, and where the damage is."""

from dualtower.curation.damage.detection import DamageReport, find_damage
from dualtower.curation.damage.knn import KNNScorer
from dualtower.curation.damage.patch import PatchScorer
from dualtower.curation.damage.photos import Photos, open_photos
from dualtower.curation.damage.reconstruction import PCAReconstructor, ReconstructionScorer, Reconstructor
from dualtower.curation.damage.scorer import METHODS, DamageScorer, Method
from dualtower.curation.damage.threshold import Threshold, choose_threshold, min_clean_rows
from dualtower.curation.damage.writer import write_damage

__all__ = [
    "METHODS",
    "DamageReport",
    "DamageScorer",
    "KNNScorer",
    "Method",
    "PCAReconstructor",
    "PatchScorer",
    "Photos",
    "ReconstructionScorer",
    "Reconstructor",
    "Threshold",
    "choose_threshold",
    "find_damage",
    "min_clean_rows",
    "open_photos",
    "write_damage",
]
