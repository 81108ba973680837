"""Run programs in CPython behind locks of the Linux kernel; docs/architecture.md says how and why.

The worker (`__main__.py`) loads this folder without the rest of reftune: standard library only.
"""
