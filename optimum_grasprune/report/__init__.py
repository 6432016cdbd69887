"""What people read: tables, the model card, and how plots look, which needs matplotlib and is imported by itself."""

from .card import GITHUB_NAME, model_card
from .tables import budget_rows, print_summary, print_table

__all__ = ["GITHUB_NAME", "budget_rows", "model_card", "print_summary", "print_table"]
