"""Training: gradient descent and gradient flow, snapshots of every layer, which networks learn and where it ends."""

from vgjax.training.boundary import BoxCount, box_dimension, zoom
from vgjax.training.config import SnapshotConfig
from vgjax.training.continuous import ContinuousTraining, train_continuously
from vgjax.training.coordinates import PARAMETRIZATIONS, CoordinateCheck, Parametrization
from vgjax.training.loop import Snapshots, Training
from vgjax.training.trainability import best

__all__ = [
    "PARAMETRIZATIONS",
    "BoxCount",
    "ContinuousTraining",
    "CoordinateCheck",
    "Parametrization",
    "SnapshotConfig",
    "Snapshots",
    "Training",
    "best",
    "box_dimension",
    "train_continuously",
    "zoom",
]
