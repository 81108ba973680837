"""How is it read? Language models, the policy with its value head, token ids, packed forward passes."""
