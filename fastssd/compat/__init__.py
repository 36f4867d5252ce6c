"""Other detectors' names and exact semantics on our kernels: one module a host, imported only when used.

- :mod:`fastssd.compat.torchvision`: ``torchvision.ops``, the parts of its detectors, and whole detectors in one line.
- :mod:`fastssd.compat.detectron2`: matcher, box coder, IoU and NMS of detectron2.
- :mod:`fastssd.compat.mmdet`: assigner, overlaps and NMS of mmdetection.
- :mod:`fastssd.compat.d2l`: the box functions of Dive into Deep Learning, chapter 14.

docs/integration.md shows each. A module needs torch, and its host only where it changes the host itself.
"""
