"""Figures of what an SSD did: detections, matching, non-maximum suppression."""
