"""What people read: tables, and how plots look, which needs matplotlib and is imported by itself."""

from .tables import LayerShares, budget_rows, print_summary, print_table

__all__ = ["LayerShares", "budget_rows", "print_summary", "print_table"]
