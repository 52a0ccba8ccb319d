"""The history: every rehearsal and training of this machine, in one SQLite file.

`trimtab.store.database` keeps it, `rehearsed` and `trained` make its entries.  Nothing here imports torch.
"""
