"""The examples, installed as ``recur.examples`` so that `recur demo` finds them; each is a script as well."""
