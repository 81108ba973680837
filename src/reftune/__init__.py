"""Reinforced fine-tuning (ReFT): better reasoning from questions whose answers can be checked."""
