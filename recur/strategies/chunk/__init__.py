"""The chunk equations of matrix states (mathematics.md, sections 2 and 3), as functions that emit tile operations."""
