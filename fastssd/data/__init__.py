"""Detection data sets: Pascal VOC, COCO JSON and YOLO text folders, and generated shapes (Pillow; extra ``train``).

>>> from fastssd.data import load_dataset
>>> train = load_dataset("VOC2007", "trainval")  # doctest: +SKIP
>>> sample = train[0]  # doctest: +SKIP

Everything but the pixels is checked when a data set is loaded; see ``docs/data.md``.
"""

from fastssd.data.dataset import DataError, DetectionDataset, Problem, Sample
from fastssd.data.images import read_image
from fastssd.data.load import available_splits, default_splits, load_dataset
from fastssd.data.shapes import shapes_dataset

__all__ = [
    "DataError",
    "DetectionDataset",
    "Problem",
    "Sample",
    "available_splits",
    "default_splits",
    "load_dataset",
    "read_image",
    "shapes_dataset",
]
