"""Start the worker; the trainer calls it by its path with the arguments of `supervisor.main`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # As the last place to look at, so that no file of ours stands in for one of Python's.
    sys.path.append(str(Path(__file__).parents[2]))
    from grading.jail.supervisor import main  # type: ignore[import-not-found]

    sys.path.pop()
    main(sys.argv[1:])
