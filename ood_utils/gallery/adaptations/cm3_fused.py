"""CM3 with spherical Bezier fusion: what is spread are points of the arcs between images and texts.

As CM3, with calU over z_k = slerp(image_k, text_k; mix), mix ~ Beta(.5, .5), one draw a step.
Source: CM3 (arXiv 2508.01226); other_methods 5. Our reading: the two modalities that it fuses are ours.
"""

from dataclasses import replace

from .cm3 import ADAPTATION as PLAIN

ADAPTATION = replace(PLAIN, name="CM3, fused", recipe={"objective": "cm3_fused"})
