"""Training: pre-training of a base model, adversarial fine-tuning of its image encoder."""
