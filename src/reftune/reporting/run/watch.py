"""The page of a run that goes on: written anew whenever there is something new, until all is done."""

import time
from collections.abc import Callable
from pathlib import Path

from reftune.reporting.run.report import write_live_page


def watch_run(run_dir: Path, seconds: int, tell: Callable[[str], None]) -> None:
    """Write `report.html` every so many seconds until all stages of the run are done.

    Broken off by Ctrl-C, it leaves a page that does not load itself anew. Raises UserError if `run_dir`
    is no run directory.
    """
    seen = -1.0
    try:
        while True:
            changed = _last_change(run_dir)
            if changed != seen and write_live_page(run_dir, seconds):
                return
            if seen < 0:
                tell(
                    f"open {run_dir / 'report.html'}: it renews itself every {seconds} s; Ctrl-C ends it"
                )
            seen = changed
            time.sleep(seconds)
    except KeyboardInterrupt:
        write_live_page(run_dir, 0)
        raise


def _last_change(run_dir: Path) -> float:
    """Return when the last of a run's logs and results was written."""
    files = [path for kind in ("*.json", "*.jsonl") for path in run_dir.rglob(kind)]
    return max((path.stat().st_mtime for path in files if path.exists()), default=0.0)
