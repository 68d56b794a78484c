"""One module a strategy: `plan(normal, sizes)` gives a Plan, or a Reject with its reason."""
