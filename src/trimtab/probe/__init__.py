"""`trimtab probe`: what this machine's GPUs, links and host really do, measured once and kept.

`trimtab.probe.start` starts one process a GPU, `trimtab.probe.rank` is what each of them does, and one
module a kind of measurement does the work.  torch is imported only inside functions.
"""
