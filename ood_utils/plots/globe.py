"""Pictures of a ``sphere.Globe``: maps, views from three sides, an interactive page (notebook 03).

Data of a figure: picture, group, x, y, z, latitude and longitude (degrees) of every drawn point.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from ..sphere import Globe
from .style import PANEL, WIDTH, Drawn, legend, look, panels, scatter

AROUND = np.append(np.linspace(0, 360, 121), np.nan)  # degrees; NaN ends the line of a circle
GREY = "#b0b0b0"


def _data(globes: Mapping[str, Globe]) -> pd.DataFrame:
    columns = ["x", "y", "z", "latitude", "longitude"]
    points = {
        (name, group): pd.DataFrame(np.hstack([xyz, np.degrees(globe.latlon(group))]), columns=columns)
        for name, globe in globes.items()
        for group, xyz in globe.xyz.items()
    }
    return pd.concat(points, names=["picture", "group", None]).reset_index(["picture", "group"])


def globe_map(
    globes: Mapping[str, Globe],
    title: str,
    threshold: float | None = None,
    notes: Mapping[str, str] = {},
    caption: str = "",
) -> Drawn:
    """Mollweide maps: the whole globe at once, one map per entry.

    ``threshold`` is a latitude in degrees: with a class text as pole of ``sphere.gap_latitude``, everything
    south of that parallel is rejected. ``notes`` are written below each map, ``caption`` below all.
    """
    projection = {"projection": "mollweide"}
    figure, axes = panels(globes, title, columns=2, height=PANEL - 0.3, subplot_kw=projection)
    for ax, (name, globe) in zip(axes, globes.items(), strict=True):
        scatter(ax, {group: globe.latlon(group)[:, ::-1] for group in globe.xyz})
        if threshold is not None:
            ax.axhline(np.radians(threshold), color="black", linewidth=1.4)
        ax.grid(True, linewidth=0.4, alpha=0.6)
        ax.set_latitude_grid(30)
        ax.set_longitude_grid(60)
        ax.set_xticklabels([])
        ax.tick_params(labelsize=8)
        ax.set_xlabel(notes.get(name, ""), fontsize=8.5)
    legend(figure, caption)
    return figure, _data(globes)


def neighbourhoods(
    globes: Mapping[str, Globe], errors: Mapping[str, Mapping[str, float]], title: str
) -> Drawn:
    """Maps of several projections, below each what it gets wrong (``errors``: ``sphere.picture_error``)."""
    note = "gap {gap_true:.2f} drawn as {gap_drawn:.2f}; pairs' cosine {pair_true:.2f} as {pair_drawn:.2f}\n"
    note += "rank correlation {rank:.2f}; true neighbours kept {overlap:.0%}"
    notes = {name: note.format_map(error) for name, error in errors.items()}
    caption = "Neighbourhoods only: sizes of clusters and distances between them mean nothing here."
    return globe_map(globes, title, notes=notes, caption=caption)


def _at(latitude: float | np.ndarray, longitude: float | np.ndarray) -> np.ndarray:
    """(3, ...) x, y and z on the unit sphere of latitudes and longitudes in degrees, broadcast."""
    up, turn = np.broadcast_arrays(np.radians(latitude), np.radians(longitude))
    return np.stack([np.cos(up) * np.cos(turn), np.cos(up) * np.sin(turn), np.sin(up)])


def _grid() -> np.ndarray:
    """(3, n) points of the circles of latitude and longitude, as one line with gaps."""
    return np.hstack([circle for d in range(-60, 91, 30) for circle in (_at(d, AROUND), _at(AROUND, d))])


def globe_views(globe: Globe, title: str) -> Drawn:
    """The globe seen from afar, from three sides and 15 degrees above the equator, its far side faint."""
    sides, grid = (0, 120, 240), _grid()  # azimuth, degrees
    figure, axes = panels([f"seen from {turn}°" for turn in sides], title, height=WIDTH / 3)
    for ax, turn in zip(axes, sides, strict=True):
        eye, plane = _at(15, turn)[:, None], np.stack([_at(0, turn + 90), _at(105, turn)])
        ax.plot(*_at(0, AROUND)[:2], color=GREY, linewidth=0.8)  # the rim
        for side, line, alpha in ((-1, 0.25, 0.1), (1, 1, 0.8)):  # the near side over the far one
            seen = np.where(side * eye.T @ grid > 0, plane @ grid, np.nan)
            ax.plot(*seen, color=GREY, linewidth=0.5, alpha=line, zorder=0)
            halves = {g: np.where(side * x @ eye > 0, x @ plane.T, np.nan) for g, x in globe.xyz.items()}
            scatter(ax, halves, alpha)
        ax.set_aspect("equal")
        ax.set_axis_off()
    legend(figure)
    return figure, _data({globe.method: globe})


def globe_html(globe: Globe, title: str = "", hover: Mapping[str, Sequence[str]] = {}) -> str:
    """An interactive globe as one stand-alone HTML page that works offline (plotly.js inside: 4.7 MB).

    ``hover`` gives the words shown at each point of a group. Texts are open diamonds here: plotly has no
    triangle in 3-D.
    """
    import plotly.graph_objects as go

    figure = go.Figure()
    x, y, z = 0.97 * _at(np.linspace(-90, 90, 31)[:, None], np.linspace(0, 360, 61))
    pale = {"colorscale": ["#f3f3f3", "#f3f3f3"], "showscale": False, "hoverinfo": "skip"}
    flat = {"ambient": 1, "diffuse": 0, "specular": 0, "fresnel": 0}
    figure.add_surface(x=x, y=y, z=z, opacity=0.6, lighting=flat, **pale)  # a ball that hides the far side
    (x, y, z), line = _grid(), {"color": GREY, "width": 1.5}
    figure.add_scatter3d(x=x, y=y, z=z, mode="lines", line=line, hoverinfo="skip", showlegend=False)
    for name, xyz in globe.xyz.items():
        kind, words = look(name), hover.get(name)
        marker = {"color": kind["facecolors"], "size": 2.5}
        if kind["marker"] == "^":
            marker = {"color": kind["edgecolors"], "size": 4, "symbol": "diamond-open"}
        x, y, z = xyz.T.astype(np.float32)
        shown = {"name": f"{name} ({len(xyz):,})", "hoverinfo": "text+name" if words else "name"}
        figure.add_scatter3d(x=x, y=y, z=z, mode="markers", marker=marker, text=words, **shown)
    axes = {f"{axis}axis": {"visible": False, "range": [-1.05, 1.05]} for axis in "xyz"}
    scene = {**axes, "aspectmode": "cube", "camera": {"eye": {"x": 1.35, "y": 0, "z": 0.45}}}
    page = {"template": "plotly_white", "margin": {"l": 0, "r": 0, "t": 50, "b": 0}}
    figure.update_layout(title=title, scene=scene, legend={"itemsizing": "constant"}, **page)
    return figure.to_html(full_html=True, default_height="96vh")
