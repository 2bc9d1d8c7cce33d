"""Measuring: metrics, comparison sheets, the speed table."""
