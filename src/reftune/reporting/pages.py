"""Pages from templates, and numbers as people read them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from reftune.methods import METHODS
from reftune.reporting.plots import palette, svg


def render(template: str, context: Mapping[str, Any], path: Path) -> Path:
    """Fill a template of `templates/` and write the page; return its path.

    What models write is hostile: HTML is escaped here, JSON for scripts by the filter `tojson`.
    """
    environment = Environment(
        loader=PackageLoader("reftune.reporting"),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"svg": svg, "percent": percent, "interval": interval}
    environment.filters |= {"signed": signed, "p_value": p_value, "table_text": table_text}
    environment.globals |= {"palette": palette(), "models": list(METHODS)}
    text = environment.get_template(template).render(context)
    path.write_text(text, encoding="utf-8", errors="replace")  # a lone surrogate cannot be written
    return path


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
