"""Pre-training of a base model, and adversarial fine-tuning of its image encoder."""
