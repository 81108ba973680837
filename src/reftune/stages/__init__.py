"""What is compared? Supervised fine-tuning, PPO, self-training, rerankers, the evaluation."""
