"""Rehearsals: the real DeepSpeed engine run before anyone pays for the GPUs.

`trimtab.rehearse.phantom` runs it under fake tensors, with no GPU and no memory.  Importing this package
imports neither torch nor DeepSpeed; what does is imported in a child process only.
"""
