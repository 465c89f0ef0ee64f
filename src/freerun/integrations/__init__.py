"""Trainers of others: Hugging Face, Lightning."""
