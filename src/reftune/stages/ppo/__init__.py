"""ReFT's PPO: `step` shows one step from questions to an update; each other module is a part of it."""
