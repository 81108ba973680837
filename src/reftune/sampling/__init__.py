"""How is it sampled? From prompts to samples, behind one small protocol."""
