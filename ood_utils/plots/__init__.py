"""Every figure, in one style: each function returns (figure, the DataFrame drawn in it) for ``save_figure``.

Titles are the caller's: a sentence that states the finding, built from numbers.
"""

# ruff: noqa: F401
from .gap import alignment_uniformity, class_gaps, cosine_families, gap_axis, gap_sweep
from .globe import globe_html, globe_map, globe_views, neighbourhoods
from .results import gallery, lam_sweep, mistakes, results, scores, towers, training_curves
