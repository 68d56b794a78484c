"""One module a strategy: ``NAME`` and ``plan(normal, sizes, outputs)``, which gives a Plan or a Reject with its reason.

A strategy is added by its module and its name in `recur.ir.plan.STRATEGIES`.
"""
