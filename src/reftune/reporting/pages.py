"""Pages from templates, and numbers as people read them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reftune.files import make_directory, writing_to
from reftune.methods import METHODS

if TYPE_CHECKING:
    from jinja2 import Template

    from reftune.reporting.plots import Plot

# The page's own colours, as (light page, dark page); models bring theirs. Figures are drawn in the light
# ones; in SVG each becomes the CSS variable of its name: one drawing follows the reader's theme.
PALETTE = {
    "ink": ("#1d2733", "#e7eaef"),
    "muted": ("#667085", "#9aa4b2"),
    "grid": ("#e6e9ee", "#2a323d"),
    "right": ("#5f8de0", "#5b83cc"),
    "wrong": ("#ced7e6", "#414c5e"),
    "fail-1": ("#efb643", "#d9a43c"),
    "fail-2": ("#df7a4f", "#d37650"),
    "fail-3": ("#b9485f", "#b9536a"),
    "fail-4": ("#875ba6", "#8f68ad"),
    "fail-rest": ("#4b5668", "#76829a"),
}
LIGHT = {name: light for name, (light, _) in PALETTE.items()}


def palette() -> dict[str, tuple[str, str]]:
    """Return every colour of a page by its name; a model's is that of the model."""
    return PALETTE | {model: method.color for model, method in METHODS.items()}


def colour_of(model: str) -> str:
    """Return the colour in which a model is drawn."""
    return METHODS[model].color[0] if model in METHODS else LIGHT["muted"]


def write_pages(
    name: str, context: Mapping[str, Any], plots: Mapping[str, Sequence[Plot]], directory: Path
) -> Path:
    """Write `directory`/NAME.md, its pictures in NAME_files/, and NAME.html; return the latter's path.

    Args:
        name: of the pages, and of their templates.
        context: what the templates show, the plots aside.
        plots: by the title of their section; one without plots is left out.
        directory: where the pages go; it has to be there.
    """
    drawn = shown(plots)
    pictures = directory / f"{name}_files"
    make_directory(pictures)
    for plot in itertools.chain(*drawn.values()):
        with writing_to(pictures):
            plot.save_png(pictures)
    for page in (directory / f"{name}.md", directory / f"{name}.html"):
        text = _template(page.name).render(context, plots=drawn)
        with writing_to(page):  # where a lone surrogate cannot be written
            page.write_text(text, encoding="utf-8", errors="replace")
    return page


def shown(plots: Mapping[str, Sequence[Plot]]) -> dict[str, Sequence[Plot]]:
    """Return the sections that have plots."""
    return {title: found for title, found in plots.items() if found}


def render(page: str, context: Mapping[str, Any]) -> str:
    """Return a page, named as its template, as text."""
    return _template(page).render(context)


def _template(page: str) -> Template:
    """Return the template of a page.

    What models write is hostile: HTML is escaped here, JSON for scripts by the filter `tojson`.
    """
    # Only now: tables for the terminal need none of it.
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=PackageLoader("reftune.reporting"),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {f.__name__: f for f in (percent, interval, signed, p_value, table_text)}
    environment.globals |= {"palette": palette(), "models": list(METHODS), "vendored": vendored}
    return environment.get_template(f"{page}.j2")


def vendored(path: str) -> str:
    """Return a file of `vendor/`, which is no template, as text."""
    return (Path(__file__).parent / "vendor" / path).read_text(encoding="utf-8")


def percent(share: float) -> str:
    """Return 0.881 as 88.1%."""
    return f"{share:.1%}"


def interval(bounds: tuple[float, float] | list[float]) -> str:
    """Return the bounds of an interval of shares in points: [21.5, 27.9]."""
    low, high = bounds
    return f"[{100 * low:.1f}, {100 * high:.1f}]".replace("-", "\N{MINUS SIGN}")


def signed(difference: float) -> str:
    """Return a difference of shares in points, with its sign: +24.7."""
    return f"{100 * difference:+.1f}".replace("-", "\N{MINUS SIGN}")


def p_value(p: float) -> str:
    """Return a p-value as "p = 0.012" or "p = 1.4e-47"."""
    return f"p = {p:.2g}" if p >= 1e-4 else f"p = {p:.1e}".replace("e-0", "e-")


def table_text(text: str) -> str:
    """Return a text as the cell of a markdown table: one line, without pipes, tags or code."""
    escaped = re.sub(r"([\\`*_\[\]|])", r"\\\1", " ".join(text.split()))
    return escaped.replace("&", "&amp;").replace("<", "&lt;")
