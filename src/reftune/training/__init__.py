"""How is it learned? Rollouts, advantages, losses, one exact optimizer step."""
