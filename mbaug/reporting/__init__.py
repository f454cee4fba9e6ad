"""From records to what a reader sees: statistics, figures, claims, tables, and the chapters that show them."""
