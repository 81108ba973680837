"""Will it fit, and how long will it take? Memory and time of each stage, before anything starts."""
