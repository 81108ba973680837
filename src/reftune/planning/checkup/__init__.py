"""What of a machine will work, and what will not: `reftune check`."""
