"""Training: one loop, and tasks that say what is trainable, which losses apply and how to evaluate."""
