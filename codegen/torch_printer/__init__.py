"""Plans as torch code: whole batched tensors, matrix products, and a short loop over what is really carried."""

from recur.codegen.torch_printer.helpers import print_helpers
from recur.codegen.torch_printer.stage import print_stage

__all__ = ["print_helpers", "print_stage"]
