"""Chains for the paper's data sets: programs derived from solutions, equations and formulas."""
