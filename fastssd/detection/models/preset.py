"""The preset, for imports beside the models. It is defined where code without torch can import it too."""

from fastssd._preset import ACTIVATIONS, CLIPS, RATIOS_4, RATIOS_6, Preset, check_size, paired_scales

__all__ = ["ACTIVATIONS", "CLIPS", "RATIOS_4", "RATIOS_6", "Preset", "check_size", "paired_scales"]
