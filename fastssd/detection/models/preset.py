"""The preset, importable from beside the models. It is defined in a module that code without torch can import too."""

from fastssd._preset import ACTIVATIONS, CLIPS, RATIOS_4, RATIOS_6, Preset, check_size, paired_scales

__all__ = ["ACTIVATIONS", "CLIPS", "RATIOS_4", "RATIOS_6", "Preset", "check_size", "paired_scales"]
