"""Pre-training of base models, and adversarial fine-tuning of their image encoders."""
