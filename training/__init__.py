"""Offline training: skills, meta-policy, fine-tuning, evaluation and export."""
