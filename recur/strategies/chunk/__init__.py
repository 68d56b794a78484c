"""The chunk equations of matrix states as functions that emit tile operations."""
