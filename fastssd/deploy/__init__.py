"""From a trained model to an application: export to ONNX, and detect without torch.

>>> from fastssd.deploy import Detector
>>> detector = Detector("model.onnx")  # doctest: +SKIP
>>> for name, score, box in detector("photo.jpg"):  # doctest: +SKIP
...     print(name, score, box)

``fastssd.deploy.onnx_export`` writes the file. Only that module, and detecting with a checkpoint, need torch.
"""

from fastssd.deploy.detector import Detector
from fastssd.deploy.files import seal
from fastssd.deploy.pictures import Picture
from fastssd.deploy.result import NamedBox, NamedDetections

__all__ = ["Detector", "NamedBox", "NamedDetections", "Picture", "seal"]
