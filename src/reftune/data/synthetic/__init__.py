"""The built-in problems: stories, their chains and options, and whether a chain is right."""
