"""Hugging Face's models and trainers."""
