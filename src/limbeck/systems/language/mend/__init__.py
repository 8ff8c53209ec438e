"""MEND: demonstrations distilled into a few vectors, once for all tasks."""
