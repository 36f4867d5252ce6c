"""The preset under the name that it has beside the models; it stands where code without torch reads it too."""

from fastssd._preset import ACTIVATIONS, CLIPS, RATIOS_4, RATIOS_6, Preset, check_size, paired_scales

__all__ = ["ACTIVATIONS", "CLIPS", "RATIOS_4", "RATIOS_6", "Preset", "check_size", "paired_scales"]
