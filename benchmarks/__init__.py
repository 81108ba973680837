"""What `make bench` runs: reftune against other ways of doing the same, measured on this machine."""

import os

# Before torch is loaded, as the command line does it: threads of a waiting process must not spin.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
