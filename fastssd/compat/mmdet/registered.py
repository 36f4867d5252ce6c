"""Importing this registers: for ``custom_imports`` in a config of mmdetection."""

from fastssd.compat.mmdet import register

register()
