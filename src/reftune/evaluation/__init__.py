"""How sure are we? Answers to unseen questions, statistics, one answer from several samples."""
