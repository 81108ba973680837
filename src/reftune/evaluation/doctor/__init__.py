"""What is wrong with a run of reinforcement learning, told from its metrics."""
