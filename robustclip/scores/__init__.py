"""What attacks raise: losses on logits, the scores made of them, and wrappers around scores."""
